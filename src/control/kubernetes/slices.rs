//! EndpointSlices to targets: what the slices of one Service say of where its pods are.
//!
//! A Service has one slice or several, and the targets are those of all together. Requests go to
//! endpoints that are ready; one that terminates takes none, whatever else is said of it. A pod of
//! a dual-stack Service stands in a slice of IPv4 and in one of IPv6 and is one target, by IPv4.
//!
//! Source: the API reference of `discovery.k8s.io/v1`, EndpointSlice: a condition that is not said
//! means ready and not terminating, and of several addresses of an endpoint the first will do.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::config::{ServicePort, Target};

/// Most slices of one Service that are kept; Kubernetes puts 100 endpoints into each.
const SLICES_MAX: usize = 1024;

/// The slices of one Service, by name.
#[derive(Debug, Default)]
pub(super) struct Slices(BTreeMap<String, Slice>);

/// What of a slice matters.
#[derive(Debug, PartialEq, Eq)]
struct Slice {
    kind: AddressKind,
    /// Name and number of each TCP port; the name may be empty, and no number means any port.
    ports: Vec<(String, Option<u16>)>,
    ready: Vec<Endpoint>,
}

/// Of the addresses of one pod the first kind here is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum AddressKind {
    V4,
    V6,
    Name,
}

/// An endpoint that takes requests.
#[derive(Debug, PartialEq, Eq)]
struct Endpoint {
    address: String,
    /// What tells its pod from others; none for endpoints that are no pods.
    pod: Option<String>,
}

impl Slices {
    /// Takes a whole list in place of all that was known.
    pub(super) fn replace(&mut self, list: Vec<EndpointSlice>) {
        self.0.clear();
        list.into_iter().for_each(|slice| self.put(slice));
    }

    /// Takes a slice that was added or has changed.
    pub(super) fn put(&mut self, slice: EndpointSlice) {
        let Some(name) = slice.metadata.name.clone() else { return };
        if self.0.len() < SLICES_MAX || self.0.contains_key(&name) {
            match Slice::of(slice) {
                Some(slice) => self.0.insert(name, slice),
                None => self.0.remove(&name),
            };
        }
    }

    /// Forgets a slice that was deleted.
    pub(super) fn remove(&mut self, slice: &EndpointSlice) {
        if let Some(name) = &slice.metadata.name {
            self.0.remove(name);
        }
    }

    /// The targets, in an order that depends on nothing but them.
    ///
    /// Shape: `port` as the config says it, `otherwise` where the slices leave the port open.
    /// Errors: a text for the operator: which port is meant is not clear, or nobody has it.
    pub(super) fn targets(
        &self,
        port: Option<&ServicePort>,
        otherwise: u16,
    ) -> Result<Vec<Target>, String> {
        let (mut found, mut refused) = (BTreeSet::new(), None);
        let best = self.best_kinds();
        for slice in self.0.values().filter(|slice| !slice.ready.is_empty()) {
            match slice.port(port, otherwise) {
                Ok(number) => {
                    let endpoints = slice.ready.iter();
                    let chosen =
                        endpoints.filter(|one| best.get(&one.pod.as_deref()) == Some(&slice.kind));
                    found.extend(chosen.map(|one| (one.address.clone(), number)));
                }
                Err(why) => refused = refused.or(Some(why)),
            }
        }
        match refused {
            Some(why) if found.is_empty() => Err(why),
            _ => {
                let target = |(host, port)| Target { host, port, weight: 1 };
                Ok(found.into_iter().map(target).collect())
            }
        }
    }

    /// The kind of address by which each pod is reached; endpoints that are no pods share one.
    fn best_kinds(&self) -> HashMap<Option<&str>, AddressKind> {
        let mut best = HashMap::new();
        for slice in self.0.values() {
            for endpoint in &slice.ready {
                let kind = best.entry(endpoint.pod.as_deref()).or_insert(slice.kind);
                *kind = slice.kind.min(*kind);
            }
        }
        best
    }
}

impl Slice {
    /// `None` for a kind of address that does not exist yet.
    fn of(slice: EndpointSlice) -> Option<Self> {
        let kind = match slice.address_type.as_str() {
            "IPv4" => AddressKind::V4,
            "IPv6" => AddressKind::V6,
            "FQDN" => AddressKind::Name,
            _ => return None,
        };
        let ports = slice.ports.unwrap_or_default().into_iter();
        let ports = ports
            .filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"))
            .map(|port| {
                let number = port.port.and_then(|number| u16::try_from(number).ok());
                (port.name.unwrap_or_default(), number)
            });
        let takes_requests = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
            let Some(conditions) = &endpoint.conditions else { return true };
            conditions.ready.unwrap_or(true) && !conditions.terminating.unwrap_or(false)
        };
        let ready = slice.endpoints.into_iter().filter(takes_requests);
        let ready = ready.filter_map(|endpoint| {
            let address = endpoint.addresses.into_iter().next()?;
            let pod = endpoint.target_ref.and_then(|pod| pod.uid.or(pod.name));
            Some(Endpoint { address, pod })
        });
        Some(Self { kind, ports: ports.collect(), ready: ready.collect() })
    }

    /// The number of the port on which the endpoints of this slice are asked.
    fn port(&self, wanted: Option<&ServicePort>, otherwise: u16) -> Result<u16, String> {
        let known = &self.ports[..];
        match (wanted, known) {
            // A Service without ports leaves them open.
            (Some(ServicePort::Number(number)), []) => Ok(*number),
            (None, []) => Ok(otherwise),
            (None, [(_, number)]) => Ok(number.unwrap_or(otherwise)),
            (None, _) => Err(format!(
                "the Service has several ports, {}: write k8s:NAMESPACE/SERVICE:PORT",
                self.told_ports()
            )),
            (Some(ServicePort::Number(number)), _) => {
                let has = |(_, one): &(String, Option<u16>)| one.is_none_or(|one| one == *number);
                let told = || {
                    format!(
                        "no pod has port {number}; {} there are (targetPort)",
                        self.told_ports()
                    )
                };
                known.iter().any(has).then_some(*number).ok_or_else(told)
            }
            (Some(ServicePort::Name(name)), _) => {
                let named = known.iter().find(|(one, _)| one == name);
                let told = || format!("no port is named {name:?}; {} there are", self.told_ports());
                named.map(|(_, number)| number.unwrap_or(otherwise)).ok_or_else(told)
            }
        }
    }

    fn told_ports(&self) -> String {
        let told = |(name, number): &(String, Option<u16>)| {
            let number = number.map_or_else(|| "any".to_owned(), |number| number.to_string());
            match name.as_str() {
                "" => number,
                name => format!("{number} ({name})"),
            }
        };
        match self.ports.is_empty() {
            true => "none".to_owned(),
            false => self.ports.iter().map(told).collect::<Vec<_>>().join(", "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn slice(name: &str, kind: &str, ports: Value, endpoints: Value) -> EndpointSlice {
        let text = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": name }, "addressType": kind,
            "ports": ports, "endpoints": endpoints,
        });
        serde_json::from_value(text).unwrap()
    }

    fn http() -> Value {
        json!([{ "name": "http", "port": 8000, "protocol": "TCP" }])
    }

    fn pod(address: &str, uid: &str) -> Value {
        json!({ "addresses": [address], "targetRef": { "kind": "Pod", "uid": uid } })
    }

    fn named(name: &str) -> Option<ServicePort> {
        Some(ServicePort::Name(name.to_owned()))
    }

    #[track_caller]
    fn check(list: Vec<EndpointSlice>, port: Option<ServicePort>, expected: &str) {
        let mut slices = Slices::default();
        slices.replace(list);
        let targets = slices.targets(port.as_ref(), 80);
        let shown = targets.map(|targets| {
            let one = |target: &Target| format!("{} {}", target.host, target.port);
            targets.iter().map(one).collect::<Vec<_>>().join(", ")
        });
        assert_eq!(shown.unwrap_or_else(|why| why), expected);
    }

    #[test]
    fn ready_ones_take_requests_and_terminating_ones_never() {
        let says = |last: u8, conditions: Value| json!({ "addresses": [format!("10.0.0.{last}")], "conditions": conditions });
        let endpoints = json!([
            says(1, json!({ "ready": true, "serving": true, "terminating": false })),
            says(2, json!({ "ready": false, "serving": false, "terminating": false })),
            says(3, json!({ "ready": false, "serving": true, "terminating": true })),
            // A Service with publishNotReadyAddresses calls all of them ready.
            says(4, json!({ "ready": true, "serving": true, "terminating": true })),
            says(5, json!({})),
            says(6, json!({ "ready": null, "terminating": null })),
            { "addresses": ["10.0.0.7"] },
        ]);
        check(
            vec![slice("a", "IPv4", http(), endpoints)],
            None,
            "10.0.0.1 8000, 10.0.0.5 8000, 10.0.0.6 8000, 10.0.0.7 8000",
        );
    }

    #[test]
    fn slices_of_one_service_are_merged_and_nobody_is_there_twice() {
        let one = slice("a", "IPv4", http(), json!([pod("10.0.0.2", "b"), pod("10.0.0.1", "a")]));
        // An endpoint that moves from one slice to another stands in both for a moment.
        let two = slice("b", "IPv4", http(), json!([pod("10.0.0.3", "c"), pod("10.0.0.1", "a")]));
        check(vec![one, two], None, "10.0.0.1 8000, 10.0.0.2 8000, 10.0.0.3 8000");
    }

    #[test]
    fn a_pod_with_both_kinds_of_address_is_one_and_one_with_ipv6_alone_counts() {
        let four = slice("a", "IPv4", http(), json!([pod("10.0.0.1", "a")]));
        let endpoints = json!([pod("fd00::1", "a"), pod("fd00::2", "b")]);
        let six = slice("b", "IPv6", http(), endpoints);
        check(vec![six.clone(), four], None, "10.0.0.1 8000, fd00::2 8000");
        check(vec![six], None, "fd00::1 8000, fd00::2 8000");
        let name = slice("c", "FQDN", http(), json!([{ "addresses": ["gpu.example"] }]));
        let later = slice("d", "QUIC", http(), json!([{ "addresses": ["x"] }]));
        check(vec![name, later], None, "gpu.example 8000");
    }

    #[test]
    fn a_port_is_found_by_name_or_number_or_is_the_only_one() {
        let one = || json!([pod("10.0.0.1", "a")]);
        let two = json!([{ "name": "http", "port": 8000 }, { "name": "metrics", "port": 9000 }]);
        let both = || vec![slice("a", "IPv4", two.clone(), one())];
        check(both(), named("http"), "10.0.0.1 8000");
        check(both(), Some(ServicePort::Number(9000)), "10.0.0.1 9000");
        check(
            both(),
            None,
            "the Service has several ports, 8000 (http), 9000 (metrics): write \
             k8s:NAMESPACE/SERVICE:PORT",
        );
        let there = "8000 (http), 9000 (metrics) there are";
        check(both(), named("grpc"), &format!("no port is named \"grpc\"; {there}"));
        let told = format!("no pod has port 80; {there} (targetPort)");
        check(both(), Some(ServicePort::Number(80)), &told);
        // UDP is no port for us.
        let udp = json!([{ "port": 8000 }, { "name": "dns", "port": 53, "protocol": "UDP" }]);
        check(vec![slice("a", "IPv4", udp, one())], None, "10.0.0.1 8000");
        for open in [json!(null), json!([]), json!([{ "name": "any" }])] {
            check(vec![slice("a", "IPv4", open.clone(), one())], None, "10.0.0.1 80");
            let number = Some(ServicePort::Number(7));
            check(vec![slice("a", "IPv4", open, one())], number, "10.0.0.1 7");
        }
    }

    #[test]
    fn pods_of_one_service_may_name_different_numbers() {
        let old = slice("a", "IPv4", http(), json!([pod("10.0.0.1", "a")]));
        let ports = json!([{ "name": "http", "port": 9000 }]);
        let new = slice("b", "IPv4", ports, json!([pod("10.0.0.2", "b")]));
        check(vec![old, new], named("http"), "10.0.0.1 8000, 10.0.0.2 9000");
    }

    #[test]
    fn a_service_without_pods_has_no_target_and_that_is_no_fault() {
        check(vec![], None, "");
        check(vec![slice("a", "IPv4", json!(null), json!(null))], named("http"), "");
        check(vec![slice("a", "IPv4", http(), json!([{ "addresses": [] }]))], None, "");
    }

    #[test]
    fn slices_change_and_go() {
        let mut slices = Slices::default();
        slices.put(slice("a", "IPv4", http(), json!([pod("10.0.0.1", "a")])));
        slices.put(slice("b", "IPv4", http(), json!([pod("10.0.0.2", "b")])));
        slices.put(slice("a", "IPv4", http(), json!([pod("10.0.0.3", "c")])));
        let hosts = |slices: &Slices| -> Vec<String> {
            let targets = slices.targets(None, 80).unwrap();
            targets.into_iter().map(|target| target.host).collect()
        };
        assert_eq!(hosts(&slices), ["10.0.0.2", "10.0.0.3"]);
        slices.remove(&slice("b", "IPv4", json!(null), json!(null)));
        assert_eq!(hosts(&slices), ["10.0.0.3"]);
        slices.replace(vec![]);
        assert_eq!(hosts(&slices), Vec::<String>::new());
    }

    #[test]
    fn slices_max_bounds_what_is_kept() {
        let mut slices = Slices::default();
        let one = |number: usize, last: u8| {
            let name = format!("s{number}");
            let endpoints = json!([{ "addresses": [format!("10.0.{}.{last}", number / 200)] }]);
            slice(&name, "IPv4", http(), endpoints)
        };
        (0..SLICES_MAX + 9).for_each(|number| slices.put(one(number, 1)));
        assert_eq!(slices.0.len(), SLICES_MAX);
        // Those that are known go on changing.
        slices.put(one(0, 2));
        assert!(slices.targets(None, 80).unwrap().iter().any(|target| target.host == "10.0.0.2"));
    }
}
