//! For a key that may use certain models only: is the name that was checked the one that the
//! server will read?
//!
//! A server may read the model in the path, in the query or in the body, and which of them it
//! is, only it knows. So all that name one must name the same, and a request that names none,
//! or that can change it later (a tunnel), is refused. A key that may use every model is asked
//! none of this.

use super::admit::Permit;
use super::plan::{PathPlan, Plan};
use super::reply::Refusal;
use crate::error::Kind;
use crate::http::head::RequestHead;
use crate::http::path::decoded;
use crate::llm::path::names_other;
use crate::policy::model::ModelTarget;

/// Refuses a tunnel: what is said in it may name any model, and is not read here.
#[cold]
pub(super) fn refuse_tunnel() -> Refusal {
    let message = "This key may use certain models only, and a tunnel may name any.";
    Refusal::because(Kind::ModelNotAllowed, message)
}

/// Refuses a request that names no model, to a key that must.
#[cold]
pub(super) fn refuse_nameless() -> Refusal {
    let message = "This key may use certain models only, and the request names none.";
    Refusal::because(Kind::ModelNotAllowed, message)
}

/// Checks that path, query and body name no model but `asked`.
///
/// Shape: `in_body` is the name in the body, if there is one.
/// Errors: 400.
#[cold]
pub(super) fn agree(
    head: &RequestHead,
    bytes: &[u8],
    asked: &str,
    in_body: Option<&str>,
) -> Result<(), Refusal> {
    let query = head.query(bytes).unwrap_or_default();
    let path = head.path(bytes);
    // Some servers take `%2F` for a slash before they look.
    let hidden = || path.contains(&b'%') && names_other(&decoded(path), b"", asked);
    if in_body.is_some_and(|name| name != asked) || names_other(path, query, asked) || hidden() {
        let message = "The request names two different models.";
        return Err(Refusal::because(Kind::ModelChanged, message));
    }
    Ok(())
}

/// Checks that some server of the target is sent the target, where the target alone names the
/// model.
///
/// Errors: 403 where the URL of each is always the same (`path_mode = "fixed"`).
#[cold]
pub(super) fn reads_target(plan: &Plan, to: ModelTarget, permit: &Permit) -> Result<(), Refusal> {
    let fixed = |number: u16| {
        let upstream = plan.upstreams.get(usize::from(number));
        upstream.is_none_or(|upstream| matches!(upstream.path, PathPlan::Fixed(_)))
    };
    let all_fixed = match to.upstream_forced {
        Some(number) => fixed(number),
        None => {
            let members = plan.groups.get(usize::from(to.group)).map_or(&[][..], |g| &g.members);
            let reached = members.iter().filter(|(number, _)| {
                let upstream = plan.upstreams.get(usize::from(*number));
                upstream.is_some_and(|upstream| upstream.reach.allows(permit.asker()))
            });
            let mut reached = reached.peekable();
            reached.peek().is_some() && reached.all(|(number, _)| fixed(*number))
        }
    };
    match all_fixed {
        true => Err(refuse_nameless()),
        false => Ok(()),
    }
}
