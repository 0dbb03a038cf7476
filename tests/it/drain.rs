//! rules §14: SIGTERM's drain lets a stream end, closes what idles, refuses what is new.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::house::{LIMIT, Setup, house, mock, wait_until};
use super::wire::chat;

#[test]
fn lets_a_stream_end_and_then_stops() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    client.send(chat("x-mock: interval=30ms,tokens=20\r\n", true));
    client.through(b"\n\n").expect("it has begun");
    proxy.drain();
    client.through(b"data: [DONE]\n\n\r\n0\r\n\r\n").expect("it ends well");
    client.expect_end();
    proxy.join();
    assert_eq!(mock.stats().aborted_total, 0);
}

#[test]
fn closes_idle_connections_and_takes_no_new_ones() {
    let (_mock, proxy) = house();
    let mut used = proxy.client();
    assert_eq!(used.send(chat("", false)).answer().status, 200);
    let addr = proxy.addr();
    proxy.drain();
    used.expect_end();
    proxy.join();
    assert!(TcpStream::connect(addr).is_err(), "nobody listens any more");
}

#[test]
fn says_close_with_the_next_answer() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    client.send(chat("x-mock: delay=300ms\r\n", false));
    mock.wait_until(LIMIT, |stats| stats.in_flight == 1).expect("begun");
    proxy.drain();
    wait_until("draining", || proxy.shared().draining.load(std::sync::atomic::Ordering::Relaxed));
    let answer = client.answer();
    assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
    client.expect_end();
    proxy.join();
}

#[test]
fn a_connection_that_never_spoke_does_not_hold_the_drain_up() {
    let (_mock, proxy) = house();
    let mut silent = proxy.client();
    wait_until("accepted", || proxy.connections() == 1);
    proxy.drain();
    silent.expect_end();
    proxy.join();
}

#[test]
fn cuts_what_outlasts_the_drain() {
    let mock = mock();
    let proxy = Setup { process: "drain = \"1s\"", ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    client.send(chat("x-mock: interval=60s\r\n", true));
    mock.wait_until(LIMIT, |stats| stats.in_flight == 1).expect("begun");
    let begun = Instant::now();
    proxy.drain();
    proxy.join();
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(5), "{took:?}");
    client.try_answer().expect_err("cut, not ended");
    mock.wait_until(LIMIT, |stats| stats.in_flight == 0).expect("let go");
}

#[test]
fn a_second_signal_cuts_at_once() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    client.send(chat("x-mock: delay=60s\r\n", false));
    mock.wait_until(LIMIT, |stats| stats.in_flight == 1).expect("begun");
    let begun = Instant::now();
    proxy.drain();
    proxy.abort();
    proxy.join();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    // Before an answer has begun the client may still be told.
    assert!(client.try_answer().is_ok_and(|answer| answer.status >= 500) || client.is_over());
}
