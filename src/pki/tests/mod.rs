//! Pairs, roots and facts of certificates that are made on the spot.

pub(crate) mod authority;

use super::*;
use authority::Authority;

#[test]
fn a_pair_is_what_fits_together() {
    let authority = Authority::new("ca");
    let (cert, key) = authority.sign("a", &["a.test"]);
    let (other_cert, other_key) = authority.sign("b", &["b.test"]);
    let pair = Pair::from_pem(&cert, &key).unwrap();
    assert_eq!(Pair::from_pem(&format!("{key}{cert}"), &format!("{cert}{key}")).unwrap(), pair);
    assert_ne!(Pair::from_pem(&other_cert, &other_key).unwrap(), pair);
    assert_ne!(Pair::from_pem(&format!("{cert}{}", authority.cert), &key).unwrap(), pair);
    assert_eq!(Pair::from_pem(&cert, &other_key), Err(PairFault::Mismatch));
    assert_eq!(Pair::from_pem(&other_cert, &key), Err(PairFault::Mismatch));
    assert_eq!(Pair::from_pem("", &key), Err(PairFault::CertMissing));
    assert_eq!(Pair::from_pem(&key, &key), Err(PairFault::CertMissing));
    assert_eq!(Pair::from_pem(&cert, &cert), Err(PairFault::KeyMissing));
}

#[test]
fn garbage_is_told_from_nothing() {
    let (cert, key) = Authority::new("ca").sign("a", &["a.test"]);
    let garbage =
        |kind: &str, text: &str| format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n");
    for text in ["AAAA", "????"] {
        let bad_cert = Pair::from_pem(&garbage("CERTIFICATE", text), &key);
        assert!(matches!(bad_cert, Err(PairFault::CertBroken(_))), "{bad_cert:?}");
        let bad_key = Pair::from_pem(&cert, &garbage("PRIVATE KEY", text));
        assert!(matches!(bad_key, Err(PairFault::KeyBroken(_))), "{bad_key:?}");
        assert!(Roots::from_pem(&garbage("CERTIFICATE", text)).is_err());
    }
    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: X,1\n\nAAAA\n\
               -----END RSA PRIVATE KEY-----\n";
    for encrypted in [garbage("ENCRYPTED PRIVATE KEY", "AAAA").as_str(), old] {
        assert_eq!(Pair::from_pem(&cert, encrypted), Err(PairFault::KeyEncrypted));
    }
    assert!(Roots::from_pem("").is_err() && Roots::from_pem(&key).is_err());
}

#[test]
fn roots_are_equal_when_their_bytes_are() {
    let (a, b) = (Authority::new("a").cert, Authority::new("b").cert);
    let roots = |text: &str| Roots::from_pem(text).unwrap();
    assert_eq!(roots(&a), roots(&format!("# a comment\n{a}")));
    assert_ne!(roots(&a), roots(&b));
    assert_eq!(roots(&format!("{a}{b}")).store().len(), 2);
}

#[test]
fn a_certificate_says_who_and_when() {
    let (cert, key) = Authority::new("ca").sign_until("app-1", &["A.test", "*.b.test"], 2030);
    let pair = Pair::from_pem(&cert, &key).unwrap();
    let expected = Facts {
        common_name: Some("app-1".to_owned()),
        dns_names: vec!["a.test".to_owned(), "*.b.test".to_owned()],
        not_before: 1_577_836_800,
        not_after: 1_893_456_000,
    };
    assert_eq!(facts(pair.own().unwrap()), Some(expected));
    assert_eq!(client_name(pair.own().unwrap()).as_deref(), Some("app-1"));
}

#[test]
fn no_key_can_be_named_like_this() {
    for name in ["", "two words", "caf\u{e9}", &"a".repeat(129)] {
        let (cert, key) = Authority::new("ca").sign(name, &["a.test"]);
        let pair = Pair::from_pem(&cert, &key).unwrap();
        assert_eq!(client_name(pair.own().unwrap()), None, "{name}");
    }
    assert_eq!(facts(&b"no certificate"[..].into()), None);
}

#[test]
fn nothing_of_a_key_is_printed() {
    let (cert, key) = Authority::new("ca").sign("a", &["a.test"]);
    let pair = Pair::from_pem(&cert, &key).unwrap();
    assert_eq!(format!("{pair:?}"), "Pair(1 certificates)");
}
