//! Addresses that stay, move, go and come back; sockets for a next process; files of Unix sockets.

use std::os::unix::net::UnixListener;

use super::*;

fn tcp(addr: &str) -> Address {
    Address::Tcp(addr.parse().unwrap())
}

fn demand(listener: &str, address: &Address) -> Demand {
    Demand { listener: ListenerId::of(listener), address: address.clone() }
}

fn apply(set: &mut ListenerSet, demands: &[Demand]) -> Vec<Address> {
    let change = set.prepare(demands).unwrap();
    set.commit(change);
    addresses(set)
}

fn addresses(set: &ListenerSet) -> Vec<Address> {
    set.addresses().map(|(_, address)| address.clone()).collect()
}

fn is_taken(address: &Address) -> bool {
    listener::bind(address, 1).is_err()
}

#[test]
fn demands_meet_what_is_there() {
    let any = tcp("127.0.0.1:0");
    let (one, two) = (tcp("127.0.0.1:1"), tcp("127.0.0.1:2"));
    let had = [demand("a", &any), demand("b", &any), demand("a", &two)];
    let have: Vec<_> = had.iter().zip([&one, &one, &two]).collect();
    let check = |demands: &[Demand], expected: &[Option<usize>]| {
        assert_eq!(match_up(&have, demands), expected, "{demands:?}");
    };
    // As it was, and in another order.
    check(&had, &[Some(0), Some(1), Some(2)]);
    check(&[demand("b", &any), demand("a", &two)], &[Some(1), Some(2)]);
    // Any port is no other listener's, and none twice.
    check(&[demand("c", &any)], &[None]);
    check(&[demand("b", &any), demand("b", &any)], &[Some(1), None]);
    // An address that moves, and one that is named by the port it was given.
    check(&[demand("c", &two)], &[Some(2)]);
    check(&[demand("a", &one)], &[Some(0)]);
    // What stays goes before what moves.
    check(&[demand("c", &two), demand("a", &two)], &[None, Some(2)]);
}

#[test]
fn an_address_that_stays_keeps_its_sockets_and_one_that_goes_is_free() {
    let mut set = ListenerSet::new(2);
    let any = tcp("127.0.0.1:0");
    let both = apply(&mut set, &[demand("a", &any), demand("b", &any)]);
    let change = set.prepare(&[demand("c", &both[1])]).unwrap();
    assert!(change.listen.is_empty());
    assert_eq!(change.stop.len(), 1);
    assert_eq!(change.assign, [(BoundId(1), ListenerId::of("c"))]);
    set.commit(change);
    assert_eq!(addresses(&set), [both[1].clone()]);
    assert!(!is_taken(&both[0]) && is_taken(&both[1]));
    set.close();
    assert!(!is_taken(&both[1]));
    assert!(set.prepare(&[demand("c", &any)]).unwrap().listen.is_empty(), "nor ever again");
}

#[test]
fn each_core_gets_a_socket_of_each_new_address() {
    let mut set = ListenerSet::new(3);
    let change = set.prepare(&[demand("a", &tcp("127.0.0.1:0"))]).unwrap();
    let cores: Vec<usize> = change.listen.iter().map(|(core, _)| *core).collect();
    assert_eq!(cores, [0, 1, 2]);
}

#[test]
fn a_bind_that_fails_leaves_everything_as_it_was() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = Address::Tcp(taken.local_addr().map(|addr| (addr, taken)).unwrap().0);
    let (stranger, _held) = listener::bind(&tcp("127.0.0.1:0"), 1).unwrap();
    let path = std::env::temp_dir().join(format!("tokenring-set-{}", std::process::id()));
    let mut set = ListenerSet::new(2);
    let before = apply(&mut set, &[demand("a", &tcp("127.0.0.1:0"))]);
    let wanted = [
        demand("b", &taken),
        demand("c", &Address::Unix(path.clone())),
        demand("unlucky", &stranger),
    ];
    let error = set.prepare(&wanted).err().unwrap().to_string();
    let Address::Tcp(addr) = stranger else { unreachable!() };
    assert!(error.starts_with("listener.unlucky: cannot listen on "), "{error}");
    assert!(error.contains(&addr.to_string()), "{error}");
    assert_eq!(addresses(&set), before);
    assert!(is_taken(&before[0]) && !is_taken(&taken) && !path.exists());
}

#[test]
fn what_is_exported_can_be_adopted_by_more_cores_and_fewer() {
    let mut set = ListenerSet::new(2);
    let first = apply(&mut set, &[demand("a", &tcp("127.0.0.1:0"))]);
    for (cores, expected) in [(1, vec![0, 0]), (2, vec![0, 1]), (3, vec![0, 1, 2])] {
        let mut next = ListenerSet::new(cores);
        for Exported { address, index, socket } in set.export().unwrap() {
            assert_eq!(address, first[0]);
            next.adopt(index, socket).unwrap();
        }
        assert_eq!(next.unclaimed().collect::<Vec<_>>(), [&first[0]]);
        let change = next.prepare(&[demand("other", &first[0])]).unwrap();
        let got: Vec<usize> = change.listen.iter().map(|(core, _)| *core).collect();
        assert_eq!(got, expected);
        next.commit(change);
        assert_eq!(addresses(&next), first);
        assert_eq!(next.unclaimed().count(), 0);
    }
    assert!(is_taken(&first[0]), "the first process still listens");
}

#[test]
fn an_adopted_socket_outlives_a_change_that_fails() {
    let (address, listening) = listener::bind(&tcp("127.0.0.1:0"), 1).unwrap();
    let (stranger, _held) = listener::bind(&tcp("127.0.0.1:0"), 1).unwrap();
    let mut set = ListenerSet::new(1);
    for socket in listening {
        set.adopt(0, socket.into()).unwrap();
    }
    assert!(set.prepare(&[demand("a", &address), demand("b", &stranger)]).is_err());
    assert_eq!(set.unclaimed().collect::<Vec<_>>(), [&address]);
    assert_eq!(apply(&mut set, &[demand("a", &address)]), [address]);
}

#[test]
fn only_what_listens_is_adopted() {
    let mut set = ListenerSet::new(1);
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(set.adopt(0, ours.into()).is_err());
}

#[test]
fn a_file_is_removed_only_by_the_process_that_made_it() {
    let path = std::env::temp_dir().join(format!("tokenring-file-{}", std::process::id()));
    let address = Address::Unix(path.clone());
    let mut set = ListenerSet::new(2);
    apply(&mut set, &[demand("a", &address)]);
    // The process that comes next has not made it.
    let mut next = ListenerSet::new(2);
    for Exported { index, socket, .. } in set.export().unwrap() {
        next.adopt(index, socket).unwrap();
    }
    apply(&mut next, &[demand("a", &address)]);
    apply(&mut next, &[]);
    assert!(path.exists());
    set.leave_files();
    drop(set);
    assert!(path.exists());
    // A file of that name that somebody else has put there stays.
    let mut set = ListenerSet::new(1);
    apply(&mut set, &[demand("a", &address)]);
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    apply(&mut set, &[]);
    assert!(path.exists());
    drop(other);
    // One of ours goes with its address.
    apply(&mut set, &[demand("a", &address)]);
    apply(&mut set, &[demand("b", &address)]);
    assert!(path.exists(), "it has moved to another listener");
    apply(&mut set, &[]);
    assert!(!path.exists());
}
