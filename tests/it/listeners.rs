//! rules §2: where a proxy listens and where it connects to; cores and their limits.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use h2::Reason;

use super::h2_client::H2Client;
use super::house::{LIMIT, Proxy, Setup, house, mock, mock_with, wait_until};
use super::wire::{Client, chat, get};

fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("tokenring-it-{}-{name}.sock", std::process::id()))
}

#[test]
fn listens_on_a_unix_socket_and_removes_it() {
    let mock = mock();
    let path = socket("listener");
    let listener = format!("bind = \"unix:{}\"", path.display());
    let proxy = Setup { listener: &listener, ..Setup::default() }.start(&[&mock]);
    let mut client = Client::connect_unix(&path);
    for _ in 0..3 {
        assert_eq!(client.send(chat("", true)).answer().status, 200);
    }
    // Such a client has no address to tell.
    assert_eq!(mock.seen()[0].field("x-forwarded-for"), None);
    drop(client);
    proxy.drain();
    proxy.join();
    assert!(!path.exists());
}

#[test]
fn connects_to_a_unix_socket() {
    let path = socket("upstream");
    let mock = mock_with(|config| config.unix = Some(path.clone()));
    let proxy = Setup::default().start_on(&[format!("unix:{}", path.display())]);
    let mut client = proxy.client();
    for _ in 0..3 {
        assert_eq!(client.send(chat("", true)).answer().status, 200);
    }
    assert_eq!(mock.stats().connections_total, 1);
    let answer = client.send(get("/echo?mock=big=10_000_000,seed=1", "")).answer();
    assert!(answer.body == super::wire::noise(1, 10_000_000));
}

#[test]
fn listens_on_ipv6() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("no IPv6 on this machine");
        return;
    }
    let mock = mock_with(|config| config.bind = "[::1]:0".parse().unwrap());
    let proxy = Setup { listener: "bind = \"[::1]:0\"", ..Setup::default() }.start(&[&mock]);
    assert!(proxy.addr().is_ipv6());
    assert_eq!(proxy.client().send(chat("", false)).answer().status, 200);
    assert_eq!(mock.seen()[0].field("x-forwarded-for").as_deref(), Some("::1"));
}

#[test]
fn listens_on_several_addresses() {
    let mock = mock();
    let path = socket("several");
    let listener =
        format!("bind = [\"127.0.0.1:0\", \"127.0.0.2:0\", \"unix:{}\"]", path.display());
    let proxy = Setup { listener: &listener, ..Setup::default() }.start(&[&mock]);
    assert_eq!(proxy.addresses().len(), 3);
    for (_, address) in &proxy.addresses() {
        if let tokenring::testing::net::dial::Address::Tcp(addr) = address {
            assert_eq!(Client::connect(*addr).send(chat("", false)).answer().status, 200);
        }
    }
    assert_eq!(Client::connect_unix(&path).send(chat("", false)).answer().status, 200);
}

#[test]
fn a_port_that_is_taken_ends_the_start_with_a_message() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = format!(
        "[[listener]]\nname = \"main\"\nbind = \"{}\"\nauth = \"none\"\n\
         [[upstream]]\nname = \"a\"\nurl = \"http://127.0.0.1:9\"\nmodels = []\n",
        taken.local_addr().unwrap()
    );
    let config = tokenring::testing::config::Config::from_toml_str(&text, &|_| None).unwrap();
    let why = tokenring::testing::server::start(&config).err().expect("the port is taken");
    assert!(!why.is_empty());
}

#[test]
fn refuses_connections_over_the_limit_while_all_are_busy_and_takes_them_again() {
    let mock = mock();
    let proxy = Setup { rest: "[limits]\nconnections = 3", ..Setup::default() }.start(&[&mock]);
    let mut clients: Vec<Client> = (0..3).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(get("/echo?mock=delay=60s", ""));
    }
    wait_until("all are busy", || mock.stats().in_flight == 3);
    let mut fourth = proxy.client();
    let _ = fourth.try_send(&chat("", false));
    let refused = match fourth.try_answer() {
        Ok(answer) => answer.status == 503,
        Err(_) => true,
    };
    assert!(refused);
    assert_eq!(proxy.shared().refused.load(Ordering::Relaxed), 1);
    clients.pop();
    wait_until("one has left", || proxy.connections() == 2);
    assert_eq!(proxy.client().send(chat("", false)).answer().status, 200);
}

#[test]
fn at_the_limit_the_longest_idle_one_is_closed_and_the_new_one_taken() {
    let mock = mock();
    let proxy = Setup { rest: "[limits]\nconnections = 3", ..Setup::default() }.start(&[&mock]);
    let ask = |client: &mut Client| client.send(chat("", false)).answer().status;
    let mut clients: Vec<Client> = (0..3).map(|_| proxy.client()).collect();
    for client in &mut clients {
        assert_eq!(ask(client), 200);
    }
    // The first has been used since the second and third.
    assert_eq!(ask(&mut clients[0]), 200);
    let mut fourth = proxy.client();
    assert_eq!(ask(&mut fourth), 200);
    assert!(clients[1].is_over(), "it has idled longest");
    // One that has said nothing yet idles too.
    let mut silent = proxy.client();
    assert!(clients[2].is_over());
    assert_eq!(ask(&mut fourth), 200);
    assert_eq!(ask(&mut clients[0]), 200);
    let mut sixth = proxy.client();
    assert_eq!(ask(&mut sixth), 200);
    assert!(silent.is_over());
    assert_eq!(proxy.shared().refused.load(Ordering::Relaxed), 0);
    wait_until("no more than the limit", || proxy.connections() == 3);
}

#[test]
fn the_longest_idle_one_may_be_another_cores() {
    let mock = mock();
    let setup =
        Setup { process: "cores = 2", rest: "[limits]\nconnections = 24", ..Setup::default() };
    let proxy = setup.start(&[&mock]);
    // Many come at once and say nothing more: whichever cores they fall to, nobody is kept out.
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..96 {
        let mut client = proxy.client();
        assert_eq!(client.send(chat("", false)).answer().status, 200);
        clients.push(client);
    }
    assert_eq!(proxy.shared().refused.load(Ordering::Relaxed), 0);
    wait_until("no more than the limit", || proxy.connections() <= 24);
    let over = clients.iter_mut().take(48).filter_map(|client| {
        client.patience(Duration::from_millis(200));
        client.is_over().then_some(())
    });
    assert!(over.count() >= 40, "the longest idle ones have gone");
}

#[test]
fn streams_count_against_the_limit_of_connections() {
    let mock = mock();
    let proxy = Setup { rest: "[limits]\nconnections = 3", ..Setup::default() }.start(&[&mock]);
    let client = H2Client::connect(proxy.addr(), None);
    // The first stands in the place of its connection.
    let mut busy: Vec<_> =
        (0..3).map(|_| client.get("/echo", &[("x-mock", "delay=60s")])).collect();
    wait_until("three are busy", || mock.stats().in_flight == 3);
    assert_eq!(client.get("/echo", &[]).reset_by_peer(), Reason::REFUSED_STREAM);
    assert!(proxy.client().is_over(), "nor is there a place for a connection");
    busy.pop().unwrap().reset();
    wait_until("one has left", || mock.stats().in_flight == 2);
    let last = || {
        let answer = client.get("/echo", &[]).try_answer();
        answer.is_ok_and(|answer| answer.status == 200)
    };
    wait_until("there is a place", last);
    drop((busy, client));
    proxy.wait_until_empty();
    // A stream's task may end a moment after its connection's.
    wait_until("no stream is counted", || proxy.shared().streams.load(Ordering::Relaxed) == 0);
}

#[test]
fn connections_per_ip_bounds_one_address_and_no_other() {
    let mock = mock();
    let rest = "[limits]\nconnections_per_ip = 2";
    let proxy = Setup { rest, ..Setup::default() }.start(&[&mock]);
    let ask = |client: &mut Client| client.send(chat("", false)).answer().status;
    let mut clients: Vec<Client> = (0..2).map(|_| proxy.client()).collect();
    for client in &mut clients {
        assert_eq!(ask(client), 200);
    }
    assert!(proxy.client().is_over(), "a third is closed");
    let mut other = Client::connect_from("127.0.0.9", proxy.addr());
    assert_eq!(ask(&mut other), 200);
    clients.pop();
    wait_until("one has left", || proxy.connections() == 2);
    assert_eq!(ask(&mut proxy.client()), 200);
}

#[test]
fn behind_a_trusted_proxy_connections_per_ip_counts_whom_it_vouches_for() {
    let mock = mock();
    let setup = Setup {
        listener: "trusted_proxies = [\"127.0.0.1/32\"]",
        rest: "[limits]\nconnections_per_ip = 1",
        ..Setup::default()
    };
    let proxy = setup.start(&[&mock]);
    let of = |ip: &str, path: &str| get(path, &format!("X-Forwarded-For: {ip}\r\n"));
    let mut busy = proxy.client();
    busy.send(of("203.0.113.5", "/echo?mock=delay=60s"));
    wait_until("it is busy", || mock.stats().in_flight == 1);
    let answer = proxy.client().send(of("203.0.113.5", "/echo")).answer();
    assert_eq!(
        (answer.status, answer.message().as_str()),
        (429, "Too many connections from this address.")
    );
    assert_eq!(proxy.client().send(of("203.0.113.6", "/echo")).answer().status, 200);
    drop(busy);
    wait_until("it has left", || mock.stats().in_flight == 0);
    assert_eq!(proxy.client().send(of("203.0.113.5", "/echo")).answer().status, 200);
}

fn active(proxy: &Proxy) -> Vec<u32> {
    proxy.shared().active.iter().map(|core| core.0.load(Ordering::Relaxed)).collect()
}

#[test]
fn connections_spread_over_two_cores() {
    let mock = mock();
    let proxy = Setup { process: "cores = 2", ..Setup::default() }.start(&[&mock]);
    let mut clients: Vec<Client> = (0..40).map(|_| proxy.client()).collect();
    for client in &mut clients {
        assert_eq!(client.send(chat("", true)).answer().status, 200);
    }
    let active = active(&proxy);
    assert_eq!(active.iter().sum::<u32>(), 40);
    // Hashing alone may put nearly all on one; the hand-off keeps it near even.
    let gap = active[0].abs_diff(active[1]);
    assert!(gap <= 12, "{active:?}");
    // Those that were handed over go on like the others.
    for client in &mut clients {
        assert_eq!(client.send(chat("", true)).answer().status, 200);
    }
    drop(clients);
    proxy.wait_until_empty();
}

#[test]
fn two_cores_share_one_unix_listener() {
    let mock = mock();
    let path = socket("shared");
    let listener = format!("bind = \"unix:{}\"", path.display());
    let proxy = Setup { process: "cores = 2", listener: &listener, ..Setup::default() };
    let proxy = proxy.start(&[&mock]);
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect_unix(&path)).collect();
    for client in &mut clients {
        assert_eq!(client.send(chat("", false)).answer().status, 200);
    }
    let active = active(&proxy);
    assert!(active.iter().all(|&count| count > 0), "{active:?}");
}

#[test]
fn serves_two_hundred_stalled_streams_and_others_beside_them() {
    let (mock, proxy) = house();
    let mut stalled: Vec<Client> = (0..200).map(|_| proxy.client()).collect();
    for client in &mut stalled {
        client.send(chat("x-mock: stall_after=1\r\n", true));
    }
    mock.wait_until(LIMIT, |stats| stats.in_flight == 200).expect("all begun");
    let mut client = proxy.client();
    for _ in 0..20 {
        assert_eq!(client.send(chat("", true)).answer().status, 200);
    }
    let workers = std::fs::read_dir("/proc/self/task").unwrap().flatten().filter(|task| {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        name.starts_with("iou-wrk")
    });
    assert_eq!(workers.count(), 0, "io_uring must not fall back to kernel threads");
    drop(stalled);
    mock.wait_until(LIMIT, |stats| stats.in_flight == 0).expect("let go");
}
