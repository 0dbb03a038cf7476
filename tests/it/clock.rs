//! The wall's clock is looked at all the time, not once at the start.

use std::time::{Duration, Instant};

use tokenring::testing::base::clock::WallTime;
use tokenring::testing::net::sys::wall_time;

use super::house::{Proxy, Setup, mock, wait_until};
use super::wire::get;

fn wall_is_right(proxy: &Proxy) -> bool {
    let clock = &proxy.shared().notifier.clock;
    let shown = clock.both(clock.at(Instant::now())).wall;
    shown.abs_diff(wall_time()) < Duration::from_secs(1)
}

/// As if the clock of the machine had been wrong by so much and has been set since.
#[test]
fn a_clock_that_was_set_is_followed_within_a_tick() {
    let mock = mock();
    let setup = Setup {
        listener: "auth = \"keys\"",
        rest: "[[key]]\nname = \"a\"\nkey = \"sk-a-0123456789\"\nexpires = \"2200-01-01T00:00:00Z\"",
        ..Setup::default()
    };
    let proxy = setup.start(&[&mock]);
    let ask = || {
        let fields = "Authorization: Bearer sk-a-0123456789\r\n";
        proxy.client().send(get("/echo", fields)).answer().status
    };
    assert!(wall_is_right(&proxy));
    let year = Duration::from_secs(365 * 86_400);
    let ten_years_ago = WallTime::default() + wall_time().since(WallTime::default() + 10 * year);
    for wrong in [wall_time() + 250 * year, ten_years_ago] {
        proxy.shared().notifier.clock.set_wall(Instant::now(), wrong);
        wait_until("the clock is followed", || wall_is_right(&proxy));
        assert_eq!(ask(), 200);
    }
}
