//! The stations between a permit and a pick: where a request goes, and under what name.
//!
//! In the order of rules §3: host route, path route, model, default group. A host or path route
//! needs no model and lets the body through at once. Otherwise the model is looked for in the
//! path (Gemini), in the query of a GET, or in the body. When the name changes on the way, only
//! the bytes of its value are replaced.

use super::hold::Scanner;
use super::permit::Permit;
use super::plan::{GroupPlan, ListenerPlan, Plan, RouteTarget, UpstreamPlan};
use super::proven;
use super::refusal::Refusal;
use super::unrouted::no_route;
use crate::base::units::format_count;
use crate::error::Kind;
use crate::http::head::RequestHead;
use crate::http::method::Method;
use crate::http::name::Name;
use crate::http::path::decoded;
use crate::http1::framing::Framing;
use crate::llm::content::{Ambiguity, BodyShape, read_as};
use crate::llm::multipart::MultipartScan;
use crate::llm::path::{PathFault, PathModel};
use crate::llm::reply::{ModelEntry, write_models_list};
use crate::llm::scan::{MISSING_MODEL, ModelScan};
use crate::policy::model::{Found, Missing, ModelTarget};
use crate::telemetry::outcome::RouteKind;

/// Most names that a refusal lists.
const NAMES_SHOWN_MAX: usize = 20;

/// Where a request goes.
#[derive(Default)]
pub struct Route {
    /// What led there.
    pub kind: RouteKind,
    /// The group.
    pub group: u16,
    /// The one upstream that must take it.
    pub upstream: Option<u16>,
    /// The place of the model in the plan's table, if it is known there.
    pub model: Option<u32>,
    /// The name to put in place of the client's.
    pub rename: Option<String>,
    /// The model is named in the target alone, and the key is limited to some.
    pub by_target: bool,
    /// Bytes of the path that a host route strips.
    strip: usize,
    /// The model's place in the target, if it stood there.
    in_target: Option<PathModel>,
}

/// Where a request goes, as far as the head alone tells.
pub enum HeadRoute {
    /// A host or path route.
    Group {
        /// The group.
        group: u16,
        /// Bytes of the path to strip.
        strip: usize,
    },
    /// The model stands in the target.
    Target(PathModel),
    /// The model stands in the body.
    Body,
    /// Nothing names a model: the default group, or a refusal.
    Nothing,
}

/// Decides what can be decided without the body.
pub fn by_head(
    listener: &ListenerPlan,
    head: &RequestHead,
    bytes: &[u8],
    permit: &Permit,
) -> Result<HeadRoute, Refusal> {
    let path = head.path(bytes);
    let host = head.authority(bytes).unwrap_or_default();
    if memchr::memchr(b'%', path).is_some() {
        may_use_decoded(listener, host, path, permit)?;
    }
    if let Some((target, strip)) = listener.routes.find(host, path) {
        return may_use(target, permit).map(|group| HeadRoute::Group { group, strip });
    }
    if permit.limited && permit.upgrade {
        return Err(proven::refuse_tunnel());
    }
    let bodyless = matches!(permit.framing, Framing::None | Framing::Length(0));
    if let Some(found) = PathModel::of_head(head, bytes).map_err(target_refusal)? {
        return Ok(HeadRoute::Target(found));
    }
    let asks =
        !matches!(head.method, Method::Get | Method::Head | Method::Options | Method::Delete);
    if bodyless && asks && listener.default_group.is_none() {
        return Err(Kind::BodyEmpty.into());
    }
    Ok(if bodyless { HeadRoute::Nothing } else { HeadRoute::Body })
}

#[cold]
fn target_refusal(fault: PathFault) -> Refusal {
    Refusal::because(Kind::HeadMalformed, format!("Invalid model in the request target: {fault}."))
}

fn may_use(target: &RouteTarget, permit: &Permit) -> Result<u16, Refusal> {
    // A route that lists keys is for those keys; a request without a key is refused.
    match target.keys.is_empty() || permit.key.is_some_and(|key| target.keys.contains(&key.0)) {
        true => Ok(target.group),
        false => Err(Refusal::because(Kind::KeyNotAllowed, "This key may not use this route.")),
    }
}

/// Checks the key's right to the route that the decoded path would take: most servers decode what
/// is still encoded in a path (`%2F` too), so that encoding must not lead past a forbidden route.
#[cold]
fn may_use_decoded(
    listener: &ListenerPlan,
    host: &[u8],
    path: &[u8],
    permit: &Permit,
) -> Result<(), Refusal> {
    let decoded = decoded(path);
    match listener.routes.find(host, &decoded) {
        Some((target, _)) => may_use(target, permit).map(|_| ()),
        None => Ok(()),
    }
}

impl HeadRoute {
    /// The model as the client named it; `in_body` is the name found there, empty if none.
    #[must_use]
    pub fn model_named<'a>(&'a self, in_body: &'a str) -> &'a str {
        match self {
            HeadRoute::Target(found) => found.name(),
            HeadRoute::Group { .. } | HeadRoute::Body | HeadRoute::Nothing => in_body,
        }
    }

    /// Chooses what looks for the model in the body.
    ///
    /// Errors: 415 for a coding, and for a type that we do not parse when the key is limited to
    /// some models; 400 for a type that servers read in two ways.
    pub fn scanner<'a>(
        &self,
        head: &RequestHead,
        bytes: &[u8],
        listener: &ListenerPlan,
        permit: &Permit,
        scan: &'a mut ModelScan,
    ) -> Result<Scanner<'a>, Refusal> {
        let looks = match self {
            HeadRoute::Body => true,
            // The path names the model; a limited key's body that names another one is refused.
            HeadRoute::Target(_) => {
                permit.limited && !matches!(permit.framing, Framing::None | Framing::Length(0))
            }
            HeadRoute::Group { .. } | HeadRoute::Nothing => false,
        };
        if !looks {
            return Ok(Scanner::None);
        }
        let mut codings = head.values(Name::ContentEncoding, bytes);
        if codings.any(|coding| !is_identity(coding)) {
            if listener.default_group.is_some() && !permit.limited {
                return Ok(Scanner::None);
            }
            let message = "A request body under a content coding cannot be routed by its model.";
            return Err(Refusal::because(Kind::CodingUnsupported, message)
                .hint("Send the body without Content-Encoding."));
        }
        match read_as(head.values(Name::ContentType, bytes)) {
            BodyShape::Json => Ok(Scanner::Json(scan)),
            BodyShape::Form(boundary) => MultipartScan::new(boundary.as_bytes())
                .map(|scan| Scanner::Form(Box::new(scan)))
                .ok_or_else(|| ambiguous_type(Ambiguity::BadBoundary)),
            BodyShape::Other if !permit.limited => Ok(Scanner::Json(scan)),
            BodyShape::Other => Err(unproven_type()),
            BodyShape::Ambiguous(why) => Err(ambiguous_type(why)),
        }
    }
}

/// A server may read such a body in another way than we do, and find another model in it.
#[cold]
fn unproven_type() -> Refusal {
    let message = "The model cannot be proven in a body of this Content-Type.";
    Refusal::because(Kind::CodingUnsupported, message)
        .hint("Send it as application/json or multipart/form-data.")
}

#[cold]
fn ambiguous_type(why: Ambiguity) -> Refusal {
    Refusal::because(Kind::BodyMalformed, format!("Ambiguous request body: {why}."))
}

/// Looks the model up and checks the key's right to it.
pub fn finish(
    plan: &Plan,
    listener: &ListenerPlan,
    head_route: HeadRoute,
    head: &RequestHead,
    bytes: &[u8],
    scanner: &Scanner<'_>,
    permit: &Permit,
) -> Result<Route, Refusal> {
    let plain = |kind, group, strip| Route { kind, group, strip, ..Route::default() };
    let (asked, in_target) = match head_route {
        HeadRoute::Group { group, strip } => return Ok(plain(RouteKind::Path, group, strip)),
        HeadRoute::Nothing => {
            let group = listener.default_group.ok_or_else(|| no_route(head, bytes, permit))?;
            if permit.limited {
                return Err(proven::refuse_nameless());
            }
            return Ok(plain(RouteKind::Default, group, 0));
        }
        HeadRoute::Target(found) => (Some(found.name().to_owned()), Some(found)),
        HeadRoute::Body if matches!(scanner, Scanner::None) => {
            let group = listener.default_group.ok_or_else(|| no_route(head, bytes, permit))?;
            return Ok(plain(RouteKind::Default, group, 0));
        }
        HeadRoute::Body => (None, None),
    };
    let in_body = scanner.model();
    let asked = match (&asked, &in_body) {
        (Some(name), _) => name.as_str(),
        (None, Some(found)) => found.name,
        (None, None) => match listener.default_group {
            Some(group) if !permit.limited => return Ok(plain(RouteKind::Default, group, 0)),
            _ => return Err(Refusal::because(Kind::ModelMissing, MISSING_MODEL)),
        },
    };
    let found = look_up(plan, listener, permit, asked)?;
    if permit.limited {
        let said = proven::Said {
            asked,
            renamed: found.name_to_send,
            in_target: in_target.as_ref(),
            in_body: in_body.as_ref().map(|found| found.name),
        };
        may_be_sent((plan, permit), head, bytes, scanner, &said, &found)?;
    }
    if let (Some(place), Some(name)) = (&in_target, found.name_to_send)
        && !place.may_be(name)
    {
        return Err(unknown_model(plan, permit, asked));
    }
    let kind = match found.target.upstream_forced {
        Some(_) => RouteKind::Upstream,
        None => RouteKind::Model,
    };
    Ok(Route {
        kind,
        group: found.target.group,
        upstream: found.target.upstream_forced,
        model: found.known,
        rename: found.name_to_send.map(str::to_owned),
        by_target: permit.limited && in_body.is_none(),
        strip: 0,
        in_target,
    })
}

/// Where a model's name leads this caller.
///
/// Errors: 403, 404, 503.
#[inline]
fn look_up<'n>(
    plan: &'n Plan,
    listener: &ListenerPlan,
    permit: &Permit,
    asked: &'n str,
) -> Result<Found<'n>, Refusal> {
    let reaches = |target| may_reach(plan, permit, target);
    match plan.models.find(asked, listener.default_group, listener.force, reaches) {
        Ok(found) => Ok(found),
        Err(Missing::NotListed(model)) if !may_use_model(plan, permit, model) => {
            Err(model_refused(model))
        }
        Err(_) => Err(unknown_model(plan, permit, asked)),
    }
}

/// Checks a limited key's right to a model, and that the server will read the name that was read
/// here.
fn may_be_sent(
    (plan, permit): (&Plan, &Permit),
    head: &RequestHead,
    bytes: &[u8],
    scanner: &Scanner<'_>,
    said: &proven::Said<'_>,
    found: &Found<'_>,
) -> Result<(), Refusal> {
    if !may_use_model(plan, permit, &found.name) {
        return Err(model_refused(&found.name));
    }
    if let Some(doubt) = scanner.doubt() {
        return Err(Refusal::because(Kind::ModelNotAllowed, doubt.message()));
    }
    proven::agree(head, bytes, said)?;
    match said.in_body {
        Some(_) => Ok(()),
        None => proven::reads_target(plan, found.target, permit),
    }
}

/// Whether a caller may be sent to a group or upstream, whatever led there: a name, a route or a
/// default.
#[must_use]
pub fn may_reach(plan: &Plan, permit: &Permit, target: ModelTarget) -> bool {
    let reach = match target.upstream_forced {
        Some(number) => plan.upstreams.get(usize::from(number)).map(|upstream| &upstream.reach),
        None => plan.groups.get(usize::from(target.group)).map(|group| &group.reach),
    };
    reach.is_some_and(|reach| reach.allows(permit.asker()))
}

/// Whether the key has a right to a model of this name.
fn may_use_model(plan: &Plan, permit: &Permit, name: &str) -> bool {
    permit.key.and_then(|key| plan.keys.key(key)).is_none_or(|key| key.models.allow(name))
}

#[cold]
fn model_refused(name: &str) -> Refusal {
    Refusal::because(Kind::ModelNotAllowed, format!("This key may not use model '{name}'."))
}

/// Whether a value of `Content-Encoding` names no coding: it is empty, or says `identity`.
fn is_identity(coding: &[u8]) -> bool {
    let mut words = coding.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    words.all(|word| word.is_empty() || word.eq_ignore_ascii_case(b"identity"))
}

/// The group that a model leads this caller to; `None` when it is not shown: its key may not use
/// it, or no server that has it is within reach.
fn shown<'p>(plan: &'p Plan, permit: &Permit, name: &str) -> Option<&'p GroupPlan> {
    if !may_use_model(plan, permit, name) {
        return None;
    }
    let reaches = |target| may_reach(plan, permit, target);
    let (_, target) = plan.models.known_to(name, reaches)?;
    plan.groups.get(usize::from(target.group))
}

#[cold]
fn unknown_model(plan: &Plan, permit: &Permit, asked: &str) -> Refusal {
    let is_shown = |name: &&str| shown(plan, permit, name).is_some();
    let mut names = plan.models.available().iter().map(AsRef::as_ref).filter(is_shown).peekable();
    // The name may be one of a server that has not listed its models yet: then it is 503 and not
    // 404. A server that is down counts here only where no model is known at all: a wrong name
    // should not wait for that server to come back.
    let nobody_heard = names.peek().is_none();
    let silent = |one: &&UpstreamPlan| one.state.unheard() && (one.state.usable() || nobody_heard);
    let mut within_reach = plan.upstreams.iter().filter(|one| one.reach.allows(permit.asker()));
    if let Some(silent) = within_reach.find(silent) {
        let name = &silent.name;
        let message = format!(
            "Model '{asked}' is not known, but upstream '{name}' has not said yet which it has."
        );
        return Refusal::because(Kind::NobodyAvailable, message);
    }
    // A gateway may list thousands: an answer to a typing mistake must not cost a core its turn.
    let shown: Vec<&str> = names.by_ref().take(NAMES_SHOWN_MAX).collect();
    let mut message = format!("Model '{asked}' not found. Available: {}", shown.join(", "));
    match names.count() {
        0 => {}
        more => message.push_str(&format!(" and {} more", format_count(more))),
    }
    Refusal::because(Kind::ModelNotFound, message)
}

impl Route {
    /// The model as the server will read it; `in_body` is the name found there, empty if none.
    #[must_use]
    pub fn model_sent<'a>(&'a self, in_body: &'a str) -> &'a str {
        match (&self.rename, &self.in_target) {
            (Some(name), _) => name,
            (None, Some(found)) => found.name(),
            (None, None) => in_body,
        }
    }

    /// Writes path and query as they go upstream, before the upstream's own mapping.
    pub fn write_target(&self, out: &mut Vec<u8>, head: &RequestHead, bytes: &[u8]) {
        let path = head.path(bytes);
        if path == b"*" {
            // `*` comes with OPTIONS alone and is no path.
            return out.extend_from_slice(head.target.of(bytes));
        }
        match (&self.in_target, &self.rename) {
            (Some(place), Some(name)) => place.replace(head.path_and_query(bytes), name, out),
            _ => {
                let path = path.get(self.strip..).unwrap_or_default();
                if !path.starts_with(b"/") {
                    out.push(b'/');
                }
                out.extend_from_slice(path);
                if let Some(query) = head.query(bytes) {
                    out.push(b'?');
                    out.extend_from_slice(query);
                }
            }
        }
    }
}

/// The JSON of `GET /v1/models` for one key.
#[must_use]
pub fn models_list(plan: &Plan, permit: &Permit) -> Vec<u8> {
    let asker = permit.asker();
    let rows: Vec<_> = plan
        .listed
        .iter()
        .filter_map(|model| {
            let group = shown(plan, permit, &model.id)?;
            Some((model, plan.group_name(group, asker), group))
        })
        .collect();
    let entries = rows.iter().map(|(model, provider, group)| ModelEntry {
        id: &model.id,
        created: plan.loaded_unix_s,
        owned_by: provider,
        description: &model.description,
        provider,
        endpoint: plan
            .members_within_reach(group, asker)
            .next()
            .and_then(|one| one.place.as_deref()),
    });
    let mut json = Vec::new();
    write_models_list(entries, &mut json);
    json
}
