//! Who reaches a group or an upstream: by which listener, with which key.
//!
//! A config says it in claims. A route claims its group for its listener and, where it lists
//! keys, for those alone; `default_group` claims a group for its listener; `[models]` opens
//! a group to all. A group hands its claims to the groups it falls back to, and an upstream
//! has the claims of all groups in which it stands. What nobody claims is open: no other
//! listener and no key has been told that it is theirs.
//!
//! It decides where a request may go, and knows nothing of the models that a key may use:
//! those are `keys`'.
//!
//! Source: rules §3, "Reach" and "Rights hang on the target".

use super::keys::KeyId;

/// Who asks: the listener that took the request, and the key that it came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The listener's number.
    pub listener: u16,
    /// The client's key; `None` on a listener without keys.
    pub key: Option<KeyId>,
}

/// One way to a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The listener that it holds on.
    pub listener: u16,
    /// The keys that it holds for, by number; `None` = whoever the listener lets in.
    pub keys: Option<Box<[u32]>>,
}

impl Claim {
    fn covers(&self, asker: Asker) -> bool {
        let has_key = |keys: &[u32]| asker.key.is_some_and(|key| keys.contains(&key.0));
        self.listener == asker.listener && self.keys.as_deref().is_none_or(has_key)
    }
}

/// Who reaches one group or upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Everybody.
    #[default]
    Open,
    /// Those whom one of these covers; an empty list = nobody.
    Claimed(Box<[Claim]>),
}

impl Reach {
    /// Tells whether this asker may go there.
    #[inline]
    pub fn allows(&self, asker: Asker) -> bool {
        match self {
            Reach::Open => true,
            Reach::Claimed(claims) => claims.iter().any(|claim| claim.covers(asker)),
        }
    }

    /// Who reaches something by any of several ways; none at all = everybody.
    pub fn any<'r>(ways: impl IntoIterator<Item = &'r Reach>) -> Reach {
        let mut all: Option<Vec<Claim>> = None;
        for way in ways {
            match way {
                Reach::Open => return Reach::Open,
                Reach::Claimed(claims) => {
                    let all = all.get_or_insert_default();
                    for claim in claims {
                        if !all.contains(claim) {
                            all.push(claim.clone());
                        }
                    }
                }
            }
        }
        all.map_or(Reach::Open, |claims| Reach::Claimed(claims.into()))
    }
}

/// What a config says of one group of the file.
#[derive(Clone, Debug, Default)]
pub struct GroupClaims {
    /// A row of `[models]` leads to it.
    pub opened: bool,
    /// Routes and default groups that name it.
    pub claims: Vec<Claim>,
    /// The groups it falls back to, by index.
    pub fallback: Vec<usize>,
}

/// Works out who reaches each group, fallbacks included.
///
/// Shape: one entry a group, in order. A claim travels along `fallback`, but into a group that
/// routes keep for certain keys it brings only what it has of those keys: a fallback is no
/// way around them.
pub fn reaches(groups: &[GroupClaims]) -> Vec<Reach> {
    let kept_for = |group: &GroupClaims| -> Option<Vec<u32>> {
        let limited = group.claims.iter().filter_map(|claim| claim.keys.as_deref());
        let open = group.opened || group.claims.iter().any(|claim| claim.keys.is_none());
        let keys: Vec<u32> = limited.flatten().copied().collect();
        (!open && !group.claims.is_empty()).then_some(keys)
    };
    let mut claims: Vec<Vec<Claim>> = groups.iter().map(|group| group.claims.clone()).collect();
    let mut opened: Vec<bool> = groups.iter().map(|group| group.opened).collect();
    // Each round carries claims one group further; no new claim = done. Claims only grow, and
    // there are finitely many.
    loop {
        let mut changed = false;
        for (at, group) in groups.iter().enumerate() {
            for &to in group.fallback.iter().filter(|to| **to < groups.len() && **to != at) {
                let kept = kept_for(&groups[to]);
                if opened[at] && kept.is_none() && !groups[to].claims.is_empty() && !opened[to] {
                    opened[to] = true;
                    changed = true;
                }
                for claim in claims[at].clone() {
                    let Some(claim) = narrowed(claim, kept.as_deref()) else { continue };
                    if !claims[to].contains(&claim) {
                        claims[to].push(claim);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    let reach = |(claims, opened): (Vec<Claim>, bool)| match opened || claims.is_empty() {
        true => Reach::Open,
        false => Reach::Claimed(claims.into()),
    };
    claims.into_iter().zip(opened).map(reach).collect()
}

/// What is left of a claim in a group that is kept for `keys`; `None` = nothing.
fn narrowed(claim: Claim, keys: Option<&[u32]>) -> Option<Claim> {
    let Some(keys) = keys else { return Some(claim) };
    let left: Box<[u32]> = match &claim.keys {
        None => keys.into(),
        Some(own) => own.iter().filter(|key| keys.contains(key)).copied().collect(),
    };
    (!left.is_empty()).then_some(Claim { keys: Some(left), ..claim })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(listener: u16, keys: &[u32]) -> Claim {
        Claim { listener, keys: (!keys.is_empty()).then(|| keys.into()) }
    }

    fn group(claims: &[Claim], fallback: &[usize]) -> GroupClaims {
        GroupClaims { opened: false, claims: claims.to_vec(), fallback: fallback.to_vec() }
    }

    fn asker(listener: u16, key: u32) -> Asker {
        Asker { listener, key: Some(KeyId(key)) }
    }

    const NOBODY: Asker = Asker { listener: 0, key: None };

    #[test]
    fn what_nobody_claims_is_open() {
        let all = reaches(&[group(&[], &[])]);
        assert_eq!(all, [Reach::Open]);
        assert!(all[0].allows(NOBODY));
    }

    #[test]
    fn a_route_claims_for_its_listener_and_its_keys() {
        let all = reaches(&[group(&[claim(1, &[7]), claim(2, &[])], &[])]);
        assert!(all[0].allows(asker(1, 7)) && all[0].allows(asker(2, 8)));
        assert!(all[0].allows(Asker { listener: 2, key: None }));
        assert!(!all[0].allows(asker(1, 8)) && !all[0].allows(asker(3, 7)));
        assert!(!all[0].allows(Asker { listener: 1, key: None }));
    }

    #[test]
    fn models_open_a_group() {
        let opened = GroupClaims { opened: true, ..group(&[claim(1, &[7])], &[]) };
        assert_eq!(reaches(&[opened]), [Reach::Open]);
    }

    #[test]
    fn a_fallback_inherits_claims() {
        // 0 → 1 → 2, and 2 is named by nobody else.
        let all = reaches(&[group(&[claim(1, &[7])], &[1]), group(&[], &[2]), group(&[], &[])]);
        for reach in &all {
            assert!(reach.allows(asker(1, 7)) && !reach.allows(asker(1, 8)), "{all:?}");
        }
    }

    #[test]
    fn a_fallback_is_no_way_around_keys() {
        let all = reaches(&[group(&[claim(1, &[])], &[1]), group(&[claim(2, &[7])], &[])]);
        assert!(all[1].allows(asker(2, 7)) && all[1].allows(asker(1, 7)));
        assert!(!all[1].allows(asker(1, 8)) && !all[1].allows(NOBODY));
        // Nor from a group that is open.
        let open = GroupClaims { opened: true, ..group(&[], &[1]) };
        let all = reaches(&[open, group(&[claim(2, &[7])], &[])]);
        assert!(!all[1].allows(asker(1, 8)));
    }

    #[test]
    fn a_fallback_of_an_open_group_without_keys_is_open() {
        let open = GroupClaims { opened: true, ..group(&[], &[1]) };
        assert_eq!(reaches(&[open, group(&[claim(2, &[])], &[])])[1], Reach::Open);
    }

    #[test]
    fn fallbacks_in_a_circle_end() {
        let all = reaches(&[group(&[claim(1, &[7])], &[1]), group(&[claim(2, &[])], &[0, 1])]);
        assert!(all[1].allows(asker(1, 7)) && all[0].allows(asker(1, 7)));
        assert!(!all[0].allows(asker(2, 8)));
    }

    #[test]
    fn several_ways_add_up() {
        let a = Reach::Claimed([claim(1, &[7])].into());
        let b = Reach::Claimed([claim(2, &[])].into());
        let both = Reach::any([&a, &b]);
        assert!(both.allows(asker(1, 7)) && both.allows(asker(2, 9)) && !both.allows(asker(1, 9)));
        assert_eq!(Reach::any([&a, &Reach::Open]), Reach::Open);
        assert_eq!(Reach::any([]), Reach::Open);
    }
}
