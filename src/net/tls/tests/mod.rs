//! Handshakes in memory: what server and client settings mean once they meet.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::KeyPair;
use rustls::SignatureScheme::ED25519;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};
use rustls::{Error, version};

use super::client::why;
use super::tickets::{Keyring, Tickets};
use super::*;
use crate::config::*;
use crate::pki::tests::authority::Authority;
use crate::pki::{Pair, Roots, facts};

fn pair(texts: (String, String)) -> CertPair {
    let loaded = Pair::from_pem(&texts.0, &texts.1).unwrap();
    CertPair { cert: "c.pem".into(), key: "k.pem".into(), loaded }
}

fn trust(authority: &Authority) -> TrustFile {
    TrustFile { path: "ca.pem".into(), roots: Roots::from_pem(&authority.cert).unwrap() }
}

/// A listener for these names, one certificate each.
fn listener(authority: &Authority, names: &[&[&str]]) -> ListenerTls {
    let pairs = names.iter().map(|names| pair(authority.sign(names[0], names))).collect();
    ListenerTls {
        pairs,
        alpn: vec![Alpn::H2, Alpn::Http11],
        client_ca: None,
        client_auth: ClientAuth::Require,
        min_version: TlsVersion::V12,
    }
}

fn trusting(authority: &Authority) -> UpstreamTls {
    UpstreamTls { ca: Authorities::File(trust(authority)), ..UpstreamTls::default() }
}

type Ends = (ClientConnection, ServerConnection);

/// Shakes hands in memory; the error is that of the side which notices the fault first.
fn shake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
    name: &str,
) -> Result<Ends, Error> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(client.clone(), name)?;
    let mut server = ServerConnection::new(server.clone())?;
    // One round more than the handshake needs: the tickets of TLS 1.3 come after it.
    for _ in 0..6 {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        while !wire.is_empty() {
            let read = server.read_tls(&mut &wire[..]).unwrap();
            wire.drain(..read);
            server.process_new_packets()?;
        }
        server.write_tls(&mut wire).unwrap();
        while !wire.is_empty() {
            let read = client.read_tls(&mut &wire[..]).unwrap();
            wire.drain(..read);
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

fn serve(store: &Store, tls: &ListenerTls) -> Arc<ServerConfig> {
    store.server("l", tls).unwrap().config()
}

fn first_name(ends: &Ends) -> String {
    let own = ends.0.peer_certificates().unwrap().first().unwrap();
    facts(own).unwrap().common_name.unwrap()
}

fn resumes(first: &Ends, second: &Ends) -> bool {
    assert_eq!(first.1.handshake_kind(), Some(HandshakeKind::Full));
    second.1.handshake_kind() == Some(HandshakeKind::Resumed)
}

/// A client with sessions of its own; with `old` it speaks TLS 1.2 only.
fn client_of(tls: &UpstreamTls, old: bool) -> Arc<ClientConfig> {
    let mut config = ClientConfig::clone(&client_config(tls, false).unwrap());
    config.resumption = Resumption::in_memory_sessions(8);
    if old {
        let built = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS12])
            .unwrap();
        let Authorities::File(file) = &tls.ca else { panic!() };
        let roots = file.roots.store().clone();
        config = built.with_root_certificates(roots).with_no_client_auth();
    }
    Arc::new(config)
}

#[test]
fn the_name_asked_for_chooses_the_certificate() {
    let authority = Authority::new("ca");
    let tls = listener(&authority, &[&["a.test"], &["*.b.test", "c.test"], &["x.b.test"]]);
    let server = serve(&Store::default(), &tls);
    // Not verified here: the default certificate does not have the unknown names asked for.
    let client = client_config(&UpstreamTls { verify: false, ..trusting(&authority) }, false);
    let client = client.unwrap();
    for (name, expected) in [
        ("a.test", "a.test"),
        ("A.TEST", "a.test"),
        ("c.test", "*.b.test"),
        ("any.b.test", "*.b.test"),
        ("ANY.B.test", "*.b.test"),
        ("x.b.test", "x.b.test"),
        ("any.b.test.", "*.b.test"),
        ("C.test.", "*.b.test"),
        ("two.any.b.test", "a.test"),
        ("b.test", "a.test"),
        ("stranger", "a.test"),
        // An address is not sent as SNI (RFC 6066 §3).
        ("10.0.0.1", "a.test"),
    ] {
        assert_eq!(first_name(&shake(&client, &server, name).unwrap()), expected, "{name}");
    }
}

#[test]
fn alpn_and_versions_are_as_configured() {
    let authority = Authority::new("ca");
    let tls = listener(&authority, &[&["a.test"]]);
    let store = Store::default();
    let agreed = |tls: &ListenerTls, http2| {
        let client = client_config(&trusting(&authority), http2).unwrap();
        let ends = shake(&client, &serve(&store, tls), "a.test").ok()?;
        ends.0.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned())
    };
    assert_eq!(agreed(&tls, true).as_deref(), Some("h2"));
    assert_eq!(agreed(&tls, false).as_deref(), Some("http/1.1"));
    let only_h1 = ListenerTls { alpn: vec![Alpn::Http11], ..tls.clone() };
    assert_eq!(agreed(&only_h1, true).as_deref(), Some("http/1.1"));
    let only_h2 = ListenerTls { alpn: vec![Alpn::H2], ..tls.clone() };
    assert_eq!(agreed(&only_h2, false), None, "nothing in common");
    let old = client_of(&trusting(&authority), true);
    let ends = shake(&old, &serve(&store, &tls), "a.test").unwrap();
    assert_eq!(ends.1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_2));
    let from_13 = ListenerTls { min_version: TlsVersion::V13, ..tls };
    assert!(shake(&old, &serve(&store, &from_13), "a.test").is_err());
}

#[test]
fn clients_show_who_they_are() {
    let (authority, other) = (Authority::new("ca"), Authority::new("other"));
    let open = listener(&authority, &[&["a.test"]]);
    let require = ListenerTls { client_ca: Some(trust(&authority)), ..open.clone() };
    let request = ListenerTls { client_auth: ClientAuth::Request, ..require.clone() };
    let nobody = trusting(&authority);
    let with = |authority: &Authority| UpstreamTls {
        client: Some(pair(authority.sign("app", &["client"]))),
        ..nobody.clone()
    };
    let (known, stranger) = (with(&authority), with(&other));
    for (tls, client, expected) in [
        (&open, &known, Ok(None)),
        (&require, &known, Ok(Some("app"))),
        (&require, &nobody, Err(())),
        (&require, &stranger, Err(())),
        (&request, &known, Ok(Some("app"))),
        (&request, &nobody, Ok(None)),
        (&request, &stranger, Err(())),
    ] {
        let server = serve(&Store::default(), tls);
        let ends = shake(&client_config(client, false).unwrap(), &server, "a.test");
        let name = ends.map_err(|_| ()).map(|(_, server)| {
            server.peer_certificates().and_then(|chain| client_name(chain.first()?))
        });
        assert_eq!(name, expected.map(|name| name.map(str::to_owned)), "{:?}", tls.client_auth);
    }
}

#[test]
fn a_client_that_signs_itself_is_believed_by_the_file_it_stands_in() {
    let own = Authority::of("app", &[], 2099);
    let require = ListenerTls {
        client_ca: Some(trust(&own)),
        ..listener(&Authority::new("ca"), &[&["a.test"]])
    };
    let showing =
        |texts| UpstreamTls { verify: false, client: Some(pair(texts)), ..UpstreamTls::default() };
    let shown = |tls: &ListenerTls, authority: &Authority| {
        let own = showing((authority.cert.clone(), authority.key.clone()));
        shake(&client_of(&own, false), &serve(&Store::default(), tls), "a.test")
            .map(|(_, server)| client_name(server.peer_certificates().unwrap().first().unwrap()))
            .map_err(|error| why(&error))
    };
    assert_eq!(shown(&require, &own), Ok(Some("app".to_owned())));
    // The authority's name with another key is refused.
    let same_name = Authority::of("app", &[], 2099);
    assert!(shown(&require, &same_name).is_err());
    let late = Authority::of("app", &[], 2021);
    let require_late = ListenerTls { client_ca: Some(trust(&late)), ..require.clone() };
    assert!(shown(&require_late, &late).unwrap_err().contains("expired"));
    // A client whose certificate the authority has signed is accepted as before.
    let signed = showing(own.sign("signed", &["c"]));
    let server = serve(&Store::default(), &require);
    assert!(shake(&client_of(&signed, false), &server, "a.test").is_ok());
    let nobody = UpstreamTls { client: None, ..signed };
    assert!(shake(&client_of(&nobody, false), &server, "a.test").is_err());
}

#[test]
fn a_server_is_verified() {
    let authority = Authority::new("ca");
    let good = listener(&authority, &[&["a.test"]]);
    let late = authority.sign_until("late", &["a.test"], 2021);
    let expired = ListenerTls { pairs: vec![pair(late)], ..good.clone() };
    let trusted = trusting(&authority);
    let strangers = trusting(&Authority::new("other"));
    let said = |tls: &ListenerTls, client: &UpstreamTls, name: &str| {
        let server = serve(&Store::default(), tls);
        shake(&client_config(client, false).unwrap(), &server, name).err().map(|error| why(&error))
    };
    assert_eq!(said(&good, &trusted, "a.test"), None);
    for (tls, client, name, part) in [
        (&good, &strangers, "a.test", "signed by nobody we trust"),
        (&good, &UpstreamTls::default(), "a.test", "signed by nobody we trust"),
        (&good, &trusted, "b.test", "not valid for name \"b.test\""),
        (&expired, &trusted, "a.test", "expired"),
    ] {
        let said_why = said(tls, client, name).unwrap_or_default();
        assert!(said_why.contains(part), "{part}: {said_why}");
        let unverified = UpstreamTls { verify: false, ..client.clone() };
        assert_eq!(said(tls, &unverified, name), None);
    }
}

#[test]
fn a_server_that_signs_itself_is_believed_by_the_file_it_stands_in() {
    let own = |names: &[&str], year| Authority::of("self", names, year);
    let served = |authority: &Authority| {
        let tls = listener(authority, &[&["unused"]]);
        let pairs = vec![pair((authority.cert.clone(), authority.key.clone()))];
        serve(&Store::default(), &ListenerTls { pairs, ..tls })
    };
    let said = |server: &Authority, client: &UpstreamTls, name: &str| {
        let config = client_config(client, false).unwrap();
        shake(&config, &served(server), name).err().map(|error| why(&error))
    };
    let good = own(&["a.test", "10.0.0.1"], 2099);
    assert_eq!(said(&good, &trusting(&good), "a.test"), None);
    assert_eq!(said(&good, &trusting(&good), "10.0.0.1"), None);
    let late = own(&["a.test"], 2021);
    // The same name as the good certificate, with another key.
    let stranger = own(&["a.test"], 2099);
    for (server, client, name, part) in [
        (&good, &trusting(&good), "b.test", "not valid for name \"b.test\""),
        (&late, &trusting(&late), "a.test", "expired"),
        (&stranger, &trusting(&good), "a.test", "an authority's own, and not in tls.ca"),
        (&good, &UpstreamTls::default(), "a.test", "an authority's own, and not in tls.ca"),
    ] {
        let said = said(server, client, name).unwrap_or_default();
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn who_asks_for_no_name_gets_a_certificate_that_it_can_verify() {
    let authority = Authority::new("ca");
    let mut tls = listener(&authority, &[&["a.test"], &["b.test"]]);
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    tls.pairs[0] = pair(authority.sign_key(&key, "a.test"));
    let mut without = CryptoProvider::clone(&provider());
    let known = &mut without.signature_verification_algorithms;
    let mapping = known.mapping.iter().copied();
    let fewer: Vec<_> = mapping.filter(|(scheme, _)| *scheme != ED25519).collect();
    known.mapping = fewer.leak();
    let Authorities::File(file) = trusting(&authority).ca else { panic!() };
    let mut client = ClientConfig::builder_with_provider(Arc::new(without))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(file.roots.store().clone())
        .with_no_client_auth();
    client.enable_sni = false;
    let ends = shake(&Arc::new(client), &serve(&Store::default(), &tls), "b.test").unwrap();
    assert_eq!(first_name(&ends), "b.test");
}

#[test]
fn sessions_resume_over_listeners_of_a_process_and_over_a_restart() {
    let authority = Authority::new("ca");
    let tls = listener(&authority, &[&["a.test"]]);
    let folder = Folder::new("resume");
    for old in [false, true] {
        let client = client_of(&trusting(&authority), old);
        let (first, told) = Store::open(Some(&folder.0));
        assert_eq!(told, None);
        let ends = shake(&client, &serve(&first, &tls), "a.test").unwrap();
        let again = shake(&client, &serve(&first, &tls), "a.test").unwrap();
        assert!(resumes(&ends, &again));
        drop(first);
        let (second, _) = Store::open(Some(&folder.0));
        assert!(resumes(&ends, &shake(&client, &serve(&second, &tls), "a.test").unwrap()));
        let elsewhere = shake(&client, &serve(&Store::default(), &tls), "a.test").unwrap();
        assert!(!resumes(&ends, &elsewhere), "other keys");
    }
}

#[test]
fn a_session_does_not_open_where_more_is_demanded() {
    let authority = Authority::new("ca");
    let open = listener(&authority, &[&["a.test"]]);
    let request = ListenerTls {
        client_ca: Some(trust(&authority)),
        client_auth: ClientAuth::Request,
        ..open.clone()
    };
    let require = ListenerTls { client_auth: ClientAuth::Require, ..request.clone() };
    for old in [false, true] {
        for tls in [&open, &request] {
            let store = Store::default();
            let client = client_of(&trusting(&authority), old);
            let server = |name, tls: &ListenerTls| store.server(name, tls).unwrap().config();
            let first = shake(&client, &server("less", tls), "a.test").unwrap();
            assert!(shake(&client, &server("more", &require), "a.test").is_err(), "{old}");
            // A failed handshake costs the client its sessions; a full handshake still works.
            let next = shake(&client, &server("less", tls), "a.test").unwrap();
            assert_eq!(first.1.alpn_protocol(), next.1.alpn_protocol());
        }
    }
    let store = Store::default();
    let tls =
        UpstreamTls { client: Some(pair(authority.sign("app", &["c"]))), ..trusting(&authority) };
    let client = client_of(&tls, false);
    let server = serve(&store, &require);
    let first = shake(&client, &server, "a.test").unwrap();
    let second = shake(&client, &server, "a.test").unwrap();
    assert!(resumes(&first, &second));
    let name = second.1.peer_certificates().and_then(|chain| client_name(chain.first()?));
    assert_eq!(name.as_deref(), Some("app"), "who resumes is still known");
}

#[test]
fn a_reload_replaces_the_certificate_and_drops_nobody() {
    let authority = Authority::new("ca");
    let store = Store::default();
    let before = listener(&authority, &[&["a.test"]]);
    let after = listener(&authority, &[&["b.test", "a.test"]]);
    let holder = store.server("l", &before).unwrap();
    let client = client_of(&trusting(&authority), false);
    let mut ends = shake(&client, &holder.config(), "a.test").unwrap();
    assert!(Arc::ptr_eq(&holder, &store.server("l", &before.clone()).unwrap()), "nothing new");
    let config = holder.config();
    assert!(Arc::ptr_eq(&holder, &store.server("l", &after).unwrap()), "the same holder");
    assert!(!Arc::ptr_eq(&config, &holder.config()));
    let fresh = client_of(&trusting(&authority), false);
    let renewed = shake(&fresh, &holder.config(), "a.test").unwrap();
    assert_eq!((first_name(&ends), first_name(&renewed)), ("a.test".into(), "b.test".into()));
    use std::io::{Read as _, Write as _};
    ends.0.writer().write_all(b"still here").unwrap();
    let mut wire = Vec::new();
    ends.0.write_tls(&mut wire).unwrap();
    ends.1.read_tls(&mut &wire[..]).unwrap();
    ends.1.process_new_packets().unwrap();
    let mut got = [0; 10];
    ends.1.reader().read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still here");
}

fn upstream(lines: &str) -> Upstream {
    let text = format!(
        "[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n\
         [[upstream]]\nname = \"u\"\n{lines}\n"
    );
    let config = Config::from_toml_str(&text, &|_| None).unwrap_or_else(|why| panic!("{why}"));
    config.upstreams[0].clone()
}

#[test]
fn the_same_settings_give_the_same_client() {
    let store = Store::default();
    let made = |lines: &str| store.client(&upstream(lines)).unwrap();
    assert_eq!(made("url = \"http://a\""), None);
    let first = made("url = \"https://a\"").unwrap();
    assert_eq!(made("url = \"https://a:443/base\"").as_deref(), Some(&*first));
    let other = made("url = \"https://b\"").unwrap();
    let port = made("url = \"https://a:1\"").unwrap();
    let named = made("url = \"https://b\"\ntls = { server_name = \"a\" }").unwrap();
    assert!(first != other && first != port && first != named && other != named);
    assert_eq!(first.name, named.name);
    let unverified = made("url = \"https://a\"\ntls = { verify = false }").unwrap();
    let http2 = made("url = \"https://a\"\nhttp2 = true").unwrap();
    assert!(first != unverified && first != http2 && unverified != http2);
    let by_address = made("url = \"https://[::1]\"").unwrap();
    assert_eq!(by_address.name, ServerName::try_from("::1").unwrap());
}

#[test]
fn a_session_is_not_spent_on_another_server_of_the_same_name() {
    let authority = Authority::new("ca");
    let tls = listener(&authority, &[&["a.test"]]);
    let new = serve(&Store::default(), &tls);
    let own = SingleCertAndKey::from(tls.pairs[0].loaded.certified().clone());
    let old = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(own));
    let old = Arc::new(old);
    let store = Store::default();
    let at = |port: u16| {
        let mut upstream = upstream(&format!("url = \"https://a.test:{port}\""));
        upstream.tls = trusting(&authority);
        store.client(&upstream).unwrap().unwrap()
    };
    let (to_new, to_old) = (at(1), at(2));
    let first = shake(&to_old.config, &old, "a.test").unwrap();
    shake(&to_new.config, &new, "a.test").unwrap();
    assert!(resumes(&first, &shake(&to_old.config, &old, "a.test").unwrap()));
}

#[test]
fn ticket_keys_are_kept_in_a_file_that_nobody_else_reads() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new("keys");
    let file = folder.0.join("made/tls-tickets");
    let open = || Tickets::open(file.parent());
    assert_eq!(open().1, None);
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let keys = std::fs::read(&file).unwrap();
    assert_eq!(open().1, None);
    assert_eq!(std::fs::read(&file).unwrap(), keys, "a young key is used on");
    std::fs::write(&file, "garbage").unwrap();
    assert!(open().1.unwrap().contains("holds no ticket keys"));
    assert!(Keyring::from_bytes(&std::fs::read(&file).unwrap()).is_some(), "mended");
    let (_, told) = Tickets::open(Some(&file));
    assert!(told.unwrap().contains("TLS sessions end with the process"), "a file is no folder");
    let others = std::fs::read_dir(file.parent().unwrap()).unwrap().count();
    assert_eq!(others, 1, "nothing half written is left");
}

/// A folder that is removed when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("tokenring-tls-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all::<&Path>(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
