//! Who reaches each group and upstream of a config: its routes, default groups and models, read
//! as the claims of `policy::reach`.

use crate::config::{Config, GroupId, ModelOrigin};
use crate::policy::reach::{self, Claim, GroupClaims, Reach};

/// Who reaches what, by the numbers of the config.
pub(super) struct Reaches {
    /// For each group.
    pub(super) groups: Vec<Reach>,
    /// For each upstream, whatever the group.
    pub(super) upstreams: Vec<Reach>,
}

/// Works out, for each group and upstream of a config, which listeners and keys lead there.
#[must_use]
pub(super) fn reaches(config: &Config) -> Reaches {
    let claims = claims(config);
    let of_claims = reach::reaches(&claims);
    // Upstreams that a row of `[models]` names without a group of the file are open, too.
    let mut opened = vec![false; config.upstreams.len()];
    for model in config.models.iter().filter(|m| m.origin == ModelOrigin::Configured) {
        let group = config.group(model.group);
        for member in group.members.iter().filter(|_| group.implicit) {
            opened[usize::from(member.upstream.0)] = true;
        }
    }
    let named: Vec<bool> = named(&claims, config);
    let mut ways: Vec<Vec<&Reach>> = vec![Vec::new(); config.upstreams.len()];
    for (group, of_claims) in config.groups.iter().zip(&of_claims).zip(&named).filter_map(
        // A group that nothing names neither restricts its members nor opens them.
        |(pair, named)| named.then_some(pair),
    ) {
        for member in &group.members {
            ways[usize::from(member.upstream.0)].push(of_claims);
        }
    }
    let upstreams: Vec<Reach> = ways
        .into_iter()
        .zip(opened)
        .map(|(ways, opened)| if opened { Reach::Open } else { Reach::any(ways) })
        .collect();
    let of_members = |group: &crate::config::Group| {
        Reach::any(group.members.iter().map(|member| &upstreams[usize::from(member.upstream.0)]))
    };
    let groups = config.groups.iter().zip(of_claims).zip(&named);
    let groups = groups
        .map(|((group, of_claims), named)| if *named { of_claims } else { of_members(group) })
        .collect();
    Reaches { groups, upstreams }
}

/// What the config says of each group.
fn claims(config: &Config) -> Vec<GroupClaims> {
    let mut claims: Vec<GroupClaims> = config
        .groups
        .iter()
        .map(|group| GroupClaims {
            fallback: group.fallback.iter().map(|id| usize::from(id.0)).collect(),
            ..GroupClaims::default()
        })
        .collect();
    for (number, listener) in config.listeners.iter().enumerate() {
        let listener_number = u16::try_from(number).unwrap_or(u16::MAX);
        let mut claim = |group: GroupId, keys: Option<Box<[u32]>>| {
            claims[usize::from(group.0)].claims.push(Claim { listener: listener_number, keys });
        };
        for route in &listener.routes {
            let keys = route.keys.as_ref().filter(|keys| !keys.is_empty());
            claim(route.group, keys.map(|keys| keys.iter().map(|key| u32::from(key.0)).collect()));
        }
        if let Some(group) = listener.default_group {
            claim(group, None);
        }
    }
    for model in config.models.iter().filter(|m| m.origin == ModelOrigin::Configured) {
        let group = usize::from(model.group.0);
        claims[group].opened |= !config.groups[group].implicit;
    }
    claims
}

/// Which groups of the file a route, a default group, a model or a fallback of such a group
/// names.
fn named(claims: &[GroupClaims], config: &Config) -> Vec<bool> {
    let mut named: Vec<bool> =
        claims.iter().map(|group| group.opened || !group.claims.is_empty()).collect();
    let mut open: Vec<usize> = (0..named.len()).filter(|at| named[*at]).collect();
    while let Some(at) = open.pop() {
        for &to in &claims[at].fallback {
            if !std::mem::replace(&mut named[to], true) {
                open.push(to);
            }
        }
    }
    named.iter().zip(&config.groups).map(|(named, group)| *named && !group.implicit).collect()
}
