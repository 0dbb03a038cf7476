//! What the rights of keys and routes come to where a reader of the file might think otherwise.

use crate::config::build::check::each;
use crate::config::model::*;
use crate::config::raw::RawConfig;
use crate::config::reader::Reader;

/// Warns of routes that ask for no model while a key is limited to some, and of routes whose
/// keys nobody is asked for.
pub(crate) fn warn_of_rights(
    raw: &RawConfig,
    r: &mut Reader<'_>,
    listeners: &[Listener],
    keys: &[Key],
) {
    for (number, (raw, listener)) in each(&raw.listener).iter().zip(listeners).enumerate() {
        let id = ListenerIndex(u16::try_from(number).unwrap_or(u16::MAX));
        let routes = each(&raw.value.route);
        // A rule that was refused leaves no route; then the file has a fault to mend first.
        if routes.len() != listener.routes.len() {
            continue;
        }
        for (at, route) in routes.iter().zip(&listener.routes) {
            let kept = route.keys.as_deref();
            if listener.auth == ListenerAuth::None {
                if kept.is_some() {
                    let message = "its keys are asked for on no listener with auth = \"none\": \
                        nobody gets through";
                    r.draft.warn(&at.spot, message);
                }
                continue;
            }
            let limited = keys.iter().enumerate().find(|(index, key)| {
                let key_id = KeyId(u16::try_from(*index).unwrap_or(u16::MAX));
                key.models != ModelSet::All
                    && key.listeners.allows(id)
                    && kept.is_none_or(|kept| kept.contains(&key_id))
            });
            if let Some((_, key)) = limited {
                let message = format!(
                    "a route asks for no model: key {:?} may use all that is behind it; list the \
                     keys that may use the route",
                    key.name
                );
                r.draft.warn(&at.spot, message);
            }
        }
    }
}
