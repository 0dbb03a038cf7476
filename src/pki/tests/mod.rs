//! Pairs, roots and facts of certificates that are made on the spot.

pub(crate) mod authority;

use super::pair::PairFault;
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
fn a_chain_begins_with_the_own_certificate_and_goes_on_in_order() {
    let (authority, other) = (Authority::new("ca"), Authority::new("other"));
    let (cert, key) = authority.sign("a", &["a.test"]);
    let broken_after =
        |chain: &[&str]| Pair::from_pem(&chain.concat(), &key).map(|pair| pair.broken_after());
    assert_eq!(broken_after(&[&cert]), Ok(None));
    assert_eq!(broken_after(&[&cert, &authority.cert]), Ok(None));
    assert_eq!(broken_after(&[&cert, &other.cert, &authority.cert]), Ok(Some(1)));
    assert_eq!(broken_after(&[&cert, &authority.cert, &other.cert]), Ok(Some(2)));
    assert_eq!(broken_after(&[&authority.cert, &cert]), Err(PairFault::OwnNotFirst));
    assert!(PairFault::OwnNotFirst.is_of_cert());
}

#[test]
fn a_key_of_a_kind_that_nobody_uses_is_told_so() {
    let (cert, _) = Authority::new("ca").sign("a", &["a.test"]);
    // secp256k1, and RSA of 1024 bits.
    for key in [SECP256K1, RSA1024] {
        let key = format!("-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\n");
        assert_eq!(Pair::from_pem(&cert, &key), Err(PairFault::KeyUnfit));
    }
}

#[test]
fn a_name_or_an_address_names_a_host() {
    let names = |names: &[&str]| {
        let (cert, key) = Authority::new("ca").sign("a", names);
        let pair = Pair::from_pem(&cert, &key).unwrap();
        facts(pair.own().unwrap()).unwrap().names_a_host
    };
    assert!(names(&["a.test"]) && names(&["10.0.0.1"]));
    assert!(!names(&[]));
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
        assert!(
            matches!(bad_key, Err(PairFault::KeyBroken(_) | PairFault::KeyUnfit)),
            "{bad_key:?}"
        );
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
        names_a_host: true,
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

const SECP256K1: &str = "MIGEAgEAMBAGByqGSM49AgEGBSuBBAAKBG0wawIBAQQg+enEoofOPmQjuCn7NYCs\n\
    bbcyuQEQlgTayokw3OJcAAmhRANCAASKkdWgkaLvMAfJpqCZmPogQe4zQ430uS1p\n\
    hGnWnnhkpPU/7xu+kXxpzp+AOb4KXh7OIih8hjFLK4+S9JCN/cvC";
const RSA1024: &str = "MIICeAIBADANBgkqhkiG9w0BAQEFAASCAmIwggJeAgEAAoGBAMrpvzrwS61yLCGc\n\
    nwoebtGvf+uU8fdrwbVdA31zJg/gLenSJL5uV2y9dA/97tSf3XOhulJ0/X0Xb6gr\n\
    I3HILKiOSmZIi1du7GDowxD7WfiA+4MVEHgP/N+JSgRq1gDWu/JGFajtkHA62iXh\n\
    vzStkPRxtZukik2wCjPBRIdS29KxAgMBAAECgYEAsIvR23kJjz6AUTpRUd+KshxN\n\
    Y26zXH/ACYmFKNhQLI3zxLYXTCz7Gdx4qBVbgFobtqjnUSkDCJykhKAL9cqhtvUu\n\
    ct3WT6E+b7w2UzygsndIvMjvqhEjJaca1PAQwuRhiUrS5qsmC9UD8MZEKD+QmAiL\n\
    oEG4DA2GuQT7PHE8hLECQQDtbaMn9m1c3H5+4gqDoPd8ps9tAWnTp2oMUpPHvmju\n\
    72XWtB9eJ98mw2hsFcp3qT1/63XucdfDg2F5Hx2ZJi8NAkEA2sj2hcs6I73fm/Nx\n\
    qA2gpfauSdWH2smzDpoHm8MU8s0Q+9BjH+3bllB+sccI56ApXqCeoKEpA9QbYwrC\n\
    z1cpNQJBAMd+aaq4Wie+dOLz1tXGuGwaVQtINr1KW8bC07zvdofcyvreGcUpR0zw\n\
    v5qhrJ9iqnQDSfHx4dM7XvlAdcQq2zkCQQCZPJReFX99NSn/Ar2iZRkV5Pchw6tJ\n\
    tGfzXDLkB/kOLk8s8EHdRS291FdIkQ1NnkIbgwhXnUkq407jSdA0hOnZAkA32f9h\n\
    vXsbLU+bI+sPrOxgCGKLVEA4IO9zvBM8tTvSExdR+B47L98OmNJTDxE6LlRdFSmx\n\
    uFZwm0FyImtpIF7p";
