//! For a key that may use certain models only: is the name that was checked the one that the
//! server will read?
//!
//! A server may read the model in the path, in the query or in the body, and we do not know which.
//! So all of these that name a model must name the same one, and a request that names none, or that
//! can change it later (a tunnel), is refused. For a key that may use every model none of this is
//! checked.

use super::permit::Permit;
use super::plan::{PathPlan, Plan};
use super::refusal::Refusal;
use crate::error::Kind;
use crate::http::head::RequestHead;
use crate::http::path::decoded;
use crate::llm::path::{ModelPosition, PathModel, names_other};
use crate::policy::model::ModelTarget;

/// Refuses a tunnel: the bytes in it may name any model, and are not read here.
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

/// What a request says of its model, and what becomes of that.
pub(super) struct Said<'a> {
    /// The name that was looked up.
    pub(super) asked: &'a str,
    /// The name that is sent in its place.
    pub(super) renamed: Option<&'a str>,
    /// The name's place in the target, if it stood there: the one place in the target that is
    /// renamed.
    pub(super) in_target: Option<&'a PathModel>,
    /// The name in the body, if there is one; it is renamed, too.
    pub(super) in_body: Option<&'a str>,
}

/// Checks that path, query and body will name one model, once all edits are made.
///
/// Errors: 400.
#[cold]
pub(super) fn agree(head: &RequestHead, bytes: &[u8], said: &Said<'_>) -> Result<(), Refusal> {
    let sent = said.renamed.unwrap_or(said.asked);
    let in_target = match (said.in_target, said.renamed) {
        (Some(place), Some(name)) => {
            let mut target = Vec::new();
            place.replace(head.path_and_query(bytes), name, &mut target);
            let path = target.split(|&byte| byte == b'?').next().unwrap_or_default();
            let query = target.get(path.len() + 1..).unwrap_or_default();
            is_other(path, query, sent)
        }
        _ => is_other(head.path(bytes), head.query(bytes).unwrap_or_default(), sent),
    };
    if in_target || said.in_body.is_some_and(|name| !said.is_asked(name)) {
        let message = "The request names two different models.";
        return Err(Refusal::because(Kind::ModelChanged, message));
    }
    Ok(())
}

/// Whether a target names another model to some server.
fn is_other(path: &[u8], query: &[u8], name: &str) -> bool {
    // Some servers take `%2F` for a slash before they look.
    let hidden = || path.contains(&b'%') && names_other(&decoded(path), b"", name);
    names_other(path, query, name) || hidden()
}

impl Said<'_> {
    /// Whether the body means the model that was asked for; Gemini's clients write
    /// `models/NAME` where the path has `models/NAME:verb`.
    fn is_asked(&self, in_body: &str) -> bool {
        let by_verb = self.in_target.is_some_and(|found| found.place() == ModelPosition::Verb);
        in_body == self.asked
            || by_verb
                && self.renamed.is_none()
                && in_body.strip_prefix("models/") == Some(self.asked)
    }
}

/// Where the request's URL alone names the model: checks that a server which may take the request
/// is sent that URL.
///
/// Errors: 403 where each such server is always sent the same URL (`path_mode = "fixed"`).
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
