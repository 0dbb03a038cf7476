//! The life of a request, station by station.
//!
//! ```text
//! read head → admit → hold (scan) → route → pick → attempt (acquire, forward, relay) → settle
//! ```
//!
//! Two back edges only: keep-alive (the connection calls `run` again) and retry (attempt →
//! pick, before the first byte has gone to the client). Everything with branches is a station
//! of its own; what is left here is the order.

use std::hash::BuildHasher as _;
use std::rc::Rc;
use std::time::Instant;

use super::admit::{self, Admitted};
use super::attempt::ExchangeState;
use super::core::{Core, LocalPlan, Scratch};
use super::dispatch::dispatch;
use super::downstream::Downstream;
use super::forward::Request;
use super::hold::{self, Enough, RequestBody, RoutedBy, Scanner, Unheld};
use super::limit;
use super::permit::Permit;
use super::places::{self, Counted};
use super::plan::{ListenerPlan, Plan};
use super::refusal::{Caller, CorsLines, Next, Refusal};
use super::reply;
use super::route::{self, HeadRoute, Route};
use super::settle::Settle;
use super::unrouted;
use crate::base::buf::{LARGE_BYTES, SMALL_BYTES};
use crate::base::clock::WallTime;
use crate::base::ids::RequestId;
use crate::config::Tracing;
use crate::error::Kind;
use crate::http::head::{RequestHead, Version};
use crate::http::method::Method;
use crate::http::path::PathFault;
use crate::http1::framing::{Framing, request_framing};
use crate::http1::head_fault::HeadFault;
use crate::http1::parse::{Parse, is_empty_lines, parse_request};
use crate::llm::reply::Dialect;
use crate::net::pooled_future::PooledFuture;
use crate::net::rt::Part;
use crate::net::sys::Shut;
use crate::policy::limit::standing::Standing;
use crate::telemetry::trace::{Trace, TraceParent};
use crate::upstream::held::Held;

/// Serves one request; the connection's receive buffer may hold its beginning already.
pub async fn run(core: &Rc<Core>, down: &mut Downstream) -> Next {
    let parsed = down.parsed.take();
    let is_read = parsed.is_some();
    let mut scratch = parsed.unwrap_or_else(|| core.take_scratch());
    let next = live(core, down, &mut scratch, is_read).await;
    core.give_back_scratch(scratch);
    next
}

async fn live(
    core: &Rc<Core>,
    down: &mut Downstream,
    scratch: &mut Scratch,
    is_read: bool,
) -> Next {
    // The exchange keeps the config it began with.
    let (plan, number) = core.plan_for(&down.listener);
    let listener = &plan.listeners[number];

    let client = down.peer.as_ref().map(|peer| peer.ip);
    // When the first bytes of the head came, if its end came later.
    let mut first = None;
    if !is_read && let Err(end) = read_head(core, &plan, listener, down, scratch, &mut first).await
    {
        return unread(core, &plan, listener, down, first, end).await;
    }
    let path = scratch.request.normalise_path(&mut down.recv);
    let mut settle = Settle::begin(core, &plan, listener.number, client);
    settle.list(|| down.socket.handle());
    if first.is_some() {
        note_slow_head(&settle, core, first);
    }
    let begun = settle.begun_at().wall;
    let mut caller = admit::caller(&scratch.request, &down.recv, begun, core.random_u64());
    settle.record.named(&caller.id);
    let method = scratch.request.method_text.of(&down.recv);
    let kind = scratch.request.method;
    settle.record.head_read(kind, method, scratch.request.path(&down.recv));
    if let Some(tracing) = &plan.tracing {
        trace(core, tracing, &scratch.request, &down.recv, &settle);
    }
    if !listener.cors.is_off() {
        caller.cors = admit::cors_lines(listener, &scratch.request, &down.recv);
    }
    let head_bytes = scratch.request.len as usize;
    let mut body = RequestBody::new(Framing::UntilClose, head_bytes);
    let served = match path {
        Ok(()) => {
            serve(core, (&plan, number), down, scratch, &mut caller, &mut body, &mut settle).await
        }
        Err(fault) => Err(path_refusal(fault).into()),
    };
    settle.record.received(body.data_bytes);
    match served {
        Ok(next) => next,
        Err(Unheld::Gone(kind)) => {
            settle.record.failed(kind);
            Next::Close
        }
        Err(Unheld::Refused(refusal)) => {
            let refusal = unrouted::at_no_api(refusal, listener, &scratch.request, &down.recv);
            // A body that is here already is skipped; one that is not ends the connection, since
            // what comes next must not be taken for a request.
            if body.end == head_bytes {
                let framing = request_framing(&scratch.request, &down.recv);
                body = RequestBody::new(framing.unwrap_or(Framing::UntilClose), head_bytes);
            }
            let body_read = hold::skip(&mut body, &down.recv);
            let next = reply::refuse(core, down, &caller, &refusal, body_read, &settle).await;
            if next == Next::KeepAlive {
                down.recv.drain(..body.end);
            }
            next
        }
    }
}

/// Decides whether the exchange is sampled.
#[cold]
fn trace(core: &Core, tracing: &Tracing, head: &RequestHead, bytes: &[u8], settle: &Settle) {
    let parent = admit::only(head, bytes, b"traceparent").and_then(TraceParent::parse);
    if let Some(trace) = Trace::begin(parent, tracing.sample, || core.random_u64()) {
        settle.record.traced(trace);
    }
}

/// Notes that a head came in pieces, the first of them at `first`.
#[cold]
fn note_slow_head(settle: &Settle, core: &Core, first: Option<Instant>) {
    if let Some(first) = first {
        settle.record.head_came_slowly(core.shared.notifier.clock.at(first));
    }
}

/// Why no head has been read.
enum Unread {
    /// Send the client this refusal.
    Refused(Refusal),
    /// The client has left, or sent nothing in its time.
    Gone,
    /// The client sent an empty line behind its last request and has begun no other: it idles.
    Nothing,
}

/// Ends what has not become a request.
#[cold]
fn unread<'a>(
    core: &'a Rc<Core>,
    plan: &'a LocalPlan,
    listener: &'a ListenerPlan,
    down: &'a mut Downstream,
    first: Option<Instant>,
    end: Unread,
) -> PooledFuture<'a, Next> {
    // Pooled, as a refusal is.
    PooledFuture::with(move || async move {
        match end {
            Unread::Refused(refusal) => {
                let client = down.peer.as_ref().map(|peer| peer.ip);
                let settle = Settle::begin(core, plan, listener.number, client);
                note_slow_head(&settle, core, first);
                let caller = nobody(core, settle.begun_at().wall);
                settle.record.named(&caller.id);
                reply::refuse(core, down, &caller, &refusal, false, &settle).await
            }
            Unread::Gone => Next::Close,
            Unread::Nothing => {
                down.recv.clear();
                Next::KeepAlive
            }
        }
    })
}

/// Reads until the head is complete; notes in `first` when it began, should it come in pieces.
async fn read_head(
    core: &Core,
    plan: &Plan,
    listener: &ListenerPlan,
    down: &mut Downstream,
    scratch: &mut Scratch,
    first: &mut Option<Instant>,
) -> Result<(), Unread> {
    let mut armed = false;
    let mut searched = 0;
    if down.bulky && down.recv.is_empty() {
        // Head and body at once, by a direct call (`hold::Waiting::receive` says why). An end or an
        // error that it meets shows again below.
        down.recv = core.buffers.take(2 * LARGE_BYTES);
        let _ = down.socket.recv_now(&mut down.recv);
        down.watch.received();
    }
    loop {
        if !down.recv.is_empty() {
            match parse_request(&down.recv, &mut searched, &plan.head, &mut scratch.request) {
                Ok(Parse::Done) => {
                    down.timer.disarm();
                    return Ok(());
                }
                Ok(Parse::More) if down.served > 0 && is_empty_lines(&down.recv) => {
                    return Err(Unread::Nothing);
                }
                Ok(Parse::More) => {
                    first.get_or_insert_with(Instant::now);
                }
                Err(fault) => {
                    return Err(Unread::Refused(head_refusal(fault, down.recv.len(), plan)));
                }
            }
        }
        if down.recv.capacity() - down.recv.len() < SMALL_BYTES / 4 {
            let mut larger = core.buffers.take((2 * down.recv.len()).max(SMALL_BYTES));
            larger.extend_from_slice(&down.recv);
            core.buffers.give_back(std::mem::replace(&mut down.recv, larger));
        }
        // Armed once for the whole head, also for a head whose beginning came behind the last
        // request.
        if !std::mem::replace(&mut armed, true) {
            down.timer.arm(down.socket.handle(), Shut::Read, listener.timeouts.head);
        }
        let (result, buffer) = down.socket.recv(std::mem::take(&mut down.recv)).await;
        down.recv = buffer;
        down.watch.received();
        match result {
            Ok(n) if n > 0 => {}
            _ if down.timer.expired() && !is_empty_lines(&down.recv) => {
                return Err(Unread::Refused(Kind::HeadTimeout.into()));
            }
            _ => return Err(Unread::Gone),
        }
    }
}

#[cold]
fn head_refusal(fault: HeadFault, bytes: usize, plan: &Plan) -> Refusal {
    let limits = &plan.head;
    match fault {
        HeadFault::HeadTooLarge => Refusal::because(
            Kind::HeadTooLarge,
            format!(
                "Request head too large: over {} bytes.",
                limits.head_bytes_max.min(bytes.max(limits.head_bytes_max))
            ),
        ),
        HeadFault::TooManyFields => Refusal::because(
            Kind::FieldsTooMany,
            format!("Too many header fields: over {}.", limits.fields_max),
        ),
        HeadFault::TargetTooLong => Refusal::because(
            Kind::TargetTooLong,
            format!("Request target too long: over {} bytes.", limits.target_bytes_max),
        ),
        HeadFault::BadVersion => Kind::VersionUnsupported.into(),
        fault => Refusal::because(Kind::HeadMalformed, format!("Malformed request: {fault}.")),
    }
}

#[cold]
fn path_refusal(fault: PathFault) -> Refusal {
    Refusal::because(Kind::HeadMalformed, format!("Malformed request: {fault}."))
}

/// Stands in for the caller of a head that could not be read.
#[cold]
fn nobody(core: &Core, now: WallTime) -> Caller {
    Caller {
        id: RequestId::new(now, core.random_u64()),
        dialect: Dialect::OpenAi,
        version: Version::Http11,
        persists: false,
        head_only: false,
        standing: Standing::default(),
        cors: CorsLines::default(),
    }
}

async fn serve(
    core: &Rc<Core>,
    (plan, number): (&LocalPlan, usize),
    down: &mut Downstream,
    scratch: &mut Scratch,
    caller: &mut Caller,
    body: &mut RequestBody,
    settle: &mut Settle,
) -> Result<Next, Unheld> {
    let (listener, accepted_by) = (&plan.listeners[number], down.listener.clone());
    let begin = scratch.request.len as usize;

    // Admit: what the head alone decides.
    let (peer, certified) = (down.peer.as_ref(), down.certified.as_deref());
    let admit =
        |now| admit::admit(plan, listener, &scratch.request, &down.recv, peer, certified, now);
    let mut admitted = admit(settle.begun_at())?;
    if matches!(admitted, Admitted::Awaited) {
        let now = PooledFuture::with(|| limit::state_is_here(core)).await;
        // Also at a listener that a plan since then does not have any more.
        listener.ip_limit.iter().for_each(|limit| limit.table.set_awaited(false));
        admitted = admit(now)?;
    }
    let permit = match admitted {
        Admitted::Permit(permit) => permit,
        other => return Ok(answer_at_once(core, plan, down, caller, settle, begin, other).await),
    };
    let _vouched = count_and_charge(core, plan, &permit, caller, settle).await?;
    let caller = &*caller;
    *body = RequestBody::new(permit.framing, begin);
    let head_route = route::by_head(listener, &scratch.request, &down.recv, &permit)?;
    if permit.expects_continue && down.recv.len() == begin {
        send_continue(core, down).await?;
    }

    // Hold and scan, then route.
    let mut held = Held::new(&core.shared.held, permit.key.map(|key| key.0), permit.client);
    let Scratch { request, response, scan, members, target, model } = scratch;
    scan.reset();
    let mut scanner = head_route.scanner(request, &down.recv, listener, &permit, scan)?;
    let at = Stations { core, plan, listener, request, permit: &permit, settle };
    let route = at.hold_and_route(head_route, down, body, &mut scanner, &mut held).await?;
    model.clear();
    model.push_str(scanner.model().map_or("", |found| found.name));
    let routed_by =
        RoutedBy { name: model, renamed: route.rename.is_some(), limited: permit.limited };
    if route.rename.is_some() && permit.chunked && !body.reader.is_done() {
        at.hold_whole(&routed_by, down, body, &mut scanner, &mut held).await?;
    }
    target.clear();
    route.write_target(target, request, &down.recv);
    if permit.is_metered {
        note_metered(plan, &route, &routed_by, (request, &down.recv), body, settle);
    }
    down.bulky = body.end - body.begin > SMALL_BYTES;

    // From here on the received head and body travel with the attempt; the bytes behind them, of
    // the next request, stay in `recv`.
    let rest = down.recv.split_off(body.end);
    let received = std::mem::replace(&mut down.recv, rest);
    let request = Request {
        listener,
        accepted_by: &accepted_by,
        head: request,
        permit: &permit,
        caller,
        target,
        rename: route.rename.as_deref(),
        routed_by,
    };
    let (scanner, hold) = (&mut scanner, &mut held);
    let held = received;
    let mut exchange = ExchangeState { held, body, hold, gone: false, scanner, response, settle };
    let ended = dispatch(core, plan, down, &request, &route, members, &mut exchange).await;
    core.buffers.give_back(exchange.held);
    match ended {
        Ok(next) => Ok(next),
        Err(refusal) => {
            let body_read = body.reader.is_done();
            Ok(reply::refuse(core, down, caller, &refusal, body_read, settle).await)
        }
    }
}

/// What the stations between admission and dispatch read.
struct Stations<'e> {
    core: &'e Core,
    plan: &'e Plan,
    listener: &'e ListenerPlan,
    request: &'e RequestHead,
    permit: &'e Permit,
    settle: &'e Settle,
}

impl Stations<'_> {
    /// Holds and scans the body until it is known where the request goes.
    async fn hold_and_route(
        &self,
        head_route: HeadRoute,
        down: &mut Downstream,
        body: &mut RequestBody,
        scanner: &mut Scanner<'_>,
        held: &mut Held<'_>,
    ) -> Result<Route, Unheld> {
        let &Self { core, plan, listener, request, permit, settle } = self;
        if !hold::is_here(core, plan, down, body, scanner, held, Enough::Routable)? {
            hold::hold(core, plan, down, body, scanner, held, Enough::Routable).await?;
            settle.record.body_held(settle.now());
        }
        let in_body = scanner.model().map_or("", |found| found.name);
        settle.record.model_named(head_route.model_named(in_body));
        let route =
            route::finish(plan, listener, head_route, request, &down.recv, scanner, permit)?;
        settle.record.routed(route.kind, route.group, route.model, route.rename.as_deref());
        Ok(route)
    }

    /// Holds a chunked body to its end: only a body that is whole can go on with a length.
    async fn hold_whole(
        &self,
        routed_by: &RoutedBy<'_>,
        down: &mut Downstream,
        body: &mut RequestBody,
        scanner: &mut Scanner<'_>,
        held: &mut Held<'_>,
    ) -> Result<(), Unheld> {
        hold::hold(self.core, self.plan, down, body, scanner, held, Enough::Whole).await?;
        match routed_by.still_holds(scanner) {
            true => Ok(()),
            false => Err(Refusal::from(Kind::ModelChanged).into()),
        }
    }
}

/// Counts an admitted request to its client and charges it to its key.
async fn count_and_charge(
    core: &Rc<Core>,
    plan: &LocalPlan,
    permit: &Permit,
    caller: &mut Caller,
    settle: &mut Settle,
) -> Result<Option<Counted>, Refusal> {
    settle.record.admitted(permit.key.map(|key| key.0), permit.client);
    let vouched = count_vouched(core, permit)?;
    // Without a key there is nothing to charge, and no future is made.
    if permit.key.is_some() {
        let now = settle.begun_at();
        settle.hold(limit::charge(core, plan, permit, caller, now).await?);
    }
    Ok(vouched)
}

/// Counts the connection to the client's address, where a proxy before us vouches for it and such
/// connections are bounded.
///
/// Errors: 429.
#[inline]
fn count_vouched(core: &Core, permit: &Permit) -> Result<Option<Counted>, Refusal> {
    if core.shared.bounds.per_ip_max() == 0 {
        return Ok(None);
    }
    let peer = permit.peer.as_ref().map(|peer| peer.ip);
    places::count_vouched(core, peer, permit.client).map_err(|_| {
        Refusal::because(Kind::ConcurrencyReached, "Too many connections from this address.")
    })
}

/// Notes what tokens are charged by: the model, how the prompt is carried, and whether the request
/// only retrieves something.
#[cold]
fn note_metered(
    plan: &Plan,
    route: &Route,
    routed_by: &RoutedBy<'_>,
    (head, bytes): (&RequestHead, &[u8]),
    body: &RequestBody,
    settle: &Settle,
) {
    let retrieves =
        matches!(head.method, Method::Get | Method::Head | Method::Options | Method::Delete);
    let passed = &mut *settle.passed.borrow_mut();
    passed.is_retrieval = retrieves && body.reader.is_done() && body.data_bytes == 0;
    passed.prompt = limit::prompt_of(
        head,
        bytes,
        matches!(request_framing(head, bytes), Ok(Framing::Chunked)),
        bytes.get(body.begin..body.end).unwrap_or_default(),
    );
    let name = match routed_by.name {
        // No model is named: the group's name stands in, since a group mostly serves one model.
        "" => plan.groups.get(usize::from(route.group)).map_or("", |group| &group.name),
        name => name,
    };
    passed.model = foldhash::fast::FixedState::default().hash_one(name);
}

/// Answers what needs no upstream.
#[cold]
fn answer_at_once<'a>(
    core: &'a Core,
    plan: &'a Plan,
    down: &'a mut Downstream,
    caller: &'a Caller,
    settle: &'a Settle,
    head_bytes: usize,
    admitted: Admitted,
) -> PooledFuture<'a, Next> {
    // Pooled, as a refusal is.
    PooledFuture::with(move || async move {
        match admitted {
            Admitted::BuiltIn(json, framing) => {
                answer(core, down, caller, settle, head_bytes, framing, json.as_bytes()).await
            }
            Admitted::Preflight(asked, framing) => {
                let bare = matches!(framing, Framing::None | Framing::Length(0));
                let next = reply::preflight(core, down, caller, asked, bare, settle).await;
                if next == Next::KeepAlive {
                    down.recv.drain(..head_bytes);
                }
                next
            }
            // Nothing is awaited any more.
            Admitted::Awaited => {
                reply::refuse(core, down, caller, &Kind::Internal.into(), false, settle).await
            }
            Admitted::Models(permit) | Admitted::Permit(permit) => {
                settle.record.admitted(permit.key.map(|key| key.0), permit.client);
                let json = route::models_list(plan, &permit);
                answer(core, down, caller, settle, head_bytes, permit.framing, &json).await
            }
        }
    })
}

/// Answers 200 with `json`.
#[cold]
fn answer<'a>(
    core: &'a Core,
    down: &'a mut Downstream,
    caller: &'a Caller,
    settle: &'a Settle,
    head_bytes: usize,
    framing: Framing,
    json: &'a [u8],
) -> PooledFuture<'a, Next> {
    // Pooled, as a refusal is.
    PooledFuture::with(move || async move {
        // The body of a GET is not read: a connection that carries one ends.
        let bare = matches!(framing, Framing::None | Framing::Length(0));
        let next = reply::send(core, down, caller, json, bare, settle).await;
        if next == Next::KeepAlive {
            down.recv.drain(..head_bytes);
        }
        next
    })
}

async fn send_continue(core: &Core, down: &mut Downstream) -> Result<(), Unheld> {
    let mut out = core.buffers.take(SMALL_BYTES);
    out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
    let (result, out) = down.socket.send_all(Part::whole(out)).await;
    core.buffers.give_back(out);
    result.map_err(|_| Unheld::Gone(Kind::ClientGone))
}
