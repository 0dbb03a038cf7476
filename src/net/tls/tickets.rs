//! Session tickets (RFC 5077, RFC 8446 §4.6.1) that any core opens, also after a restart.
//!
//! A ticket is the session itself, sealed (encrypted and authenticated) with a key that only we
//! have, so nothing is kept per client. The keys are in one ring: the newest seals, and two older
//! ones still open. Every 12 hours a new key is made and the oldest deleted, so that a key that
//! leaks opens the tickets of 36 hours and no more. With a state folder the ring is written to a
//! file there, so that a restarted process opens the tickets of the process before it.
//!
//! A ticket is bound to what its listener demanded of the client (`TicketContext`). A listener that
//! demands something else cannot open it, and the client does a full handshake.
//!
//! Layout of a ticket: id of the key (16 bytes), time of sealing (8, Unix seconds), nonce (12), the
//! session in AES-256-GCM (with 16 of tag); id, time and context are authenticated with it. Random
//! nonces are safe for 2^32 tickets a key (NIST SP 800-38D §8.3).

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

#[cfg(feature = "aws-lc-rs")]
use aws_lc_rs::aead;
#[cfg(not(feature = "aws-lc-rs"))]
use ring::aead;
use rustls::pki_types::CertificateDer;
use rustls::server::ProducesTickets;
use sha2::{Digest as _, Sha256};

use crate::config::{ClientAuth, ListenerTls};
use crate::net::sys::unix_s;
use crate::pki::{facts, provider};

/// How long a key seals new tickets, in seconds.
const ROTATE_S: u64 = 12 * 3600;
/// How long a ticket can be opened after it was sealed, in seconds.
const LIFETIME_S: u64 = 24 * 3600;
/// Keys in a ring: the one that seals, and those that only open.
const KEYS_MAX: usize = 3;
/// Longest ticket that is opened, in bytes; a session with a chain of client certificates has some
/// thousands.
const TICKET_BYTES_MAX: usize = 64 << 10;

const ID: usize = 16;
const TIME: usize = 8;
const NONCE: usize = aead::NONCE_LEN;
const SECRET: usize = 32;
/// First bytes of the file.
const MAGIC: &[u8] = b"tokenring tickets 1\n";
const RECORD: usize = TIME + ID + SECRET;
/// Name of the file in the state folder.
const FILE: &str = "tls-tickets";

/// Fills a slice with bytes that cannot be guessed; false when the source of randomness fails.
type Random<'a> = &'a dyn Fn(&mut [u8]) -> bool;

/// What a listener demands of clients, as a digest; a ticket opens only under an equal digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TicketContext([u8; 32]);

impl TicketContext {
    /// The digest of a listener's authorities for clients and of whether it requires a
    /// certificate.
    #[must_use]
    pub fn of(tls: &ListenerTls) -> Self {
        let mut sum = Sha256::new();
        match &tls.client_ca {
            None => sum.update([0]),
            Some(file) => {
                sum.update([if tls.client_auth == ClientAuth::Require { 1 } else { 2 }]);
                sum.update(file.roots.digest());
            }
        }
        Self(sum.finalize().into())
    }
}

struct Key {
    id: [u8; ID],
    made_s: u64,
    secret: [u8; SECRET],
    sealing: aead::LessSafeKey,
}

impl Key {
    fn new(id: [u8; ID], made_s: u64, secret: [u8; SECRET]) -> Option<Self> {
        let sealing = aead::UnboundKey::new(&aead::AES_256_GCM, &secret).ok()?;
        Some(Self { id, made_s, secret, sealing: aead::LessSafeKey::new(sealing) })
    }
}

/// The keys, the newest first; at most `KEYS_MAX`. An empty ring seals and opens nothing.
#[derive(Default)]
pub struct Keyring(Vec<Key>);

impl Keyring {
    /// Adds a new key when the newest is older than `ROTATE_S`, and removes those older than three
    /// times that; true when anything changed, or should have.
    pub fn rotate(&mut self, now_s: u64, random: Random<'_>) -> bool {
        let before = self.0.len();
        let kept_s = ROTATE_S * KEYS_MAX as u64;
        // A key from the future was made under a wrong clock, so its age is not known.
        self.0.retain(|key| {
            key.made_s <= now_s.saturating_add(ROTATE_S)
                && now_s < key.made_s.saturating_add(kept_s)
        });
        let fresh = self.0.first().is_some_and(|key| now_s < key.made_s.saturating_add(ROTATE_S));
        if fresh {
            return self.0.len() != before;
        }
        let (mut id, mut secret) = ([0; ID], [0; SECRET]);
        if random(&mut id) && random(&mut secret) {
            self.0.truncate(KEYS_MAX - 1);
            self.0.splice(0..0, Key::new(id, now_s, secret));
        }
        true
    }

    /// Seals a session for `LIFETIME_S`, but no longer than the client's certificates in it are
    /// valid.
    ///
    /// Errors: `None` without a key or without a nonce; the client gets no ticket.
    pub fn seal(
        &self,
        context: &TicketContext,
        session: &[u8],
        now_s: u64,
        random: Random<'_>,
    ) -> Option<Vec<u8>> {
        let key = self.0.first()?;
        let mut nonce = [0; NONCE];
        if !random(&mut nonce) {
            return None;
        }
        // A ticket that must end earlier gets an earlier time of sealing.
        let end_s = certificates_end(session).map_or(u64::MAX, |end_s| end_s.saturating_add(1));
        let sealed_s = now_s.min(end_s.saturating_sub(LIFETIME_S));
        let mut ticket = Vec::with_capacity(ID + TIME + NONCE + session.len() + 16);
        ticket.extend_from_slice(&key.id);
        ticket.extend_from_slice(&sealed_s.to_be_bytes());
        let bound = bound(&ticket, context);
        let mut sealed = session.to_vec();
        let at = aead::Nonce::assume_unique_for_key(nonce);
        key.sealing.seal_in_place_append_tag(at, aead::Aad::from(&bound), &mut sealed).ok()?;
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(&sealed);
        Some(ticket)
    }

    /// Opens a ticket and returns the session; `None` when it was sealed by no key of the ring or
    /// for another context, when it is too old, or no ticket at all.
    #[must_use]
    pub fn open(&self, context: &TicketContext, ticket: &[u8], now_s: u64) -> Option<Vec<u8>> {
        if ticket.len() > TICKET_BYTES_MAX {
            return None;
        }
        let (front, rest) = ticket.split_at_checked(ID + TIME)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE)?;
        let (id, time) = front.split_at_checked(ID)?;
        let key = self.0.iter().find(|key| key.id == id)?;
        let bound = bound(front, context);
        let nonce = aead::Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let length =
            key.sealing.open_in_place(nonce, aead::Aad::from(&bound), &mut sealed).ok()?.len();
        sealed.truncate(length);
        let sealed_s = u64::from_be_bytes(time.try_into().ok()?);
        (now_s < sealed_s.saturating_add(LIFETIME_S)).then_some(sealed)
    }

    /// The content of the file: `MAGIC`, then for each key its time, id and secret.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for key in &self.0 {
            out.extend_from_slice(&key.made_s.to_be_bytes());
            out.extend_from_slice(&key.id);
            out.extend_from_slice(&key.secret);
        }
        out
    }

    /// Reads the bytes of `to_bytes`; `None` when they are anything else.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let records = bytes.strip_prefix(MAGIC)?;
        if records.len() % RECORD != 0 || records.len() > RECORD * KEYS_MAX {
            return None;
        }
        let key = |record: &[u8]| {
            let (made_s, rest) = record.split_at_checked(TIME)?;
            let (id, secret) = rest.split_at_checked(ID)?;
            let made_s = u64::from_be_bytes(made_s.try_into().ok()?);
            Key::new(id.try_into().ok()?, made_s, secret.try_into().ok()?)
        };
        let mut keys: Vec<Key> = records.chunks_exact(RECORD).map(key).collect::<Option<_>>()?;
        keys.sort_by_key(|key| std::cmp::Reverse(key.made_s));
        Some(Self(keys))
    }
}

/// The earliest end of validity of the certificates in a session, in Unix seconds; `None` without
/// certificates.
///
/// The format of a session is private to rustls, so the bytes are searched: a certificate is DER
/// (RFC 5280 §4.1), a `SEQUENCE` whose length is in one or two bytes of their own.
fn certificates_end(session: &[u8]) -> Option<u64> {
    let mut end_s: Option<u64> = None;
    let mut at = 0;
    while let Some(rest) = session.get(at..).filter(|rest| !rest.is_empty()) {
        at += 1;
        let len = match *rest {
            [0x30, 0x81, len, ..] => 3 + usize::from(len),
            [0x30, 0x82, high, low, ..] => 4 + usize::from(u16::from_be_bytes([high, low])),
            _ => continue,
        };
        let Some(der) = rest.get(..len) else { continue };
        if let Some(facts) = facts(&CertificateDer::from(der)) {
            end_s = Some(end_s.map_or(facts.not_after, |end_s| end_s.min(facts.not_after)));
            at += len - 1;
        }
    }
    end_s
}

/// The bytes that are authenticated beside the session: `front` is id and time of the ticket.
fn bound(front: &[u8], context: &TicketContext) -> [u8; ID + TIME + 32] {
    let mut bound = [0; ID + TIME + 32];
    let parts = front.iter().chain(&context.0);
    bound.iter_mut().zip(parts).for_each(|(to, from)| *to = *from);
    bound
}

/// The ring that all cores and listeners share, and the file in which it is kept.
pub struct Tickets {
    ring: RwLock<Keyring>,
    file: Option<PathBuf>,
}

impl Tickets {
    /// Reads the ring of a state folder, or begins one; the text is a warning for the operator.
    #[must_use]
    pub fn open(state_dir: Option<&Path>) -> (Arc<Self>, Option<String>) {
        let file = state_dir.map(|dir| dir.join(FILE));
        let named = |why: &dyn std::fmt::Display| {
            let shown = file.as_deref().unwrap_or(Path::new(FILE)).display();
            format!("{shown}: {why}; TLS sessions end with the process")
        };
        let mut warning = None;
        let mut ring = Keyring::default();
        if let Some(path) = &file {
            match fs::read(path) {
                Ok(bytes) => match Keyring::from_bytes(&bytes) {
                    Some(known) => ring = known,
                    None => warning = Some(named(&"it holds no ticket keys and is written anew")),
                },
                Err(why) if why.kind() == io::ErrorKind::NotFound => {}
                Err(why) => warning = Some(named(&why)),
            }
        }
        let tickets = Self { ring: RwLock::new(ring), file: file.clone() };
        // Without a file keys are made only when a listener asks (`for_context`): the first random
        // bytes of a process cost more time than the rest of its start.
        if file.is_some()
            && let Err(why) = tickets.renew()
        {
            warning = Some(named(&why));
        }
        (Arc::new(tickets), warning)
    }

    /// Rotates the keys when it is time, and writes the file when they changed. Called by the
    /// control thread at intervals, never by a core.
    ///
    /// Errors: the file cannot be written; the new keys are in use all the same.
    pub fn rotate(&self) -> io::Result<()> {
        if self.is_empty() { Ok(()) } else { self.renew() }
    }

    /// The keys, for the process that comes next; empty when there are none.
    #[must_use]
    pub fn give(&self) -> Vec<u8> {
        if self.is_empty() {
            return Vec::new();
        }
        self.ring.read().unwrap_or_else(PoisonError::into_inner).to_bytes()
    }

    /// Goes on with the keys of the process before, so that its tickets open here; how many there
    /// are. Keys of our own stay as far as there is place.
    ///
    /// Shape: `None` when the bytes are no keys; nothing has changed.
    pub fn inherit(&self, bytes: &[u8]) -> Option<usize> {
        let Keyring(mut keys) = Keyring::from_bytes(bytes)?;
        let inherited = keys.len();
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        for own in std::mem::take(&mut ring.0) {
            if keys.len() < KEYS_MAX && keys.iter().all(|key| key.id != own.id) {
                keys.push(own);
            }
        }
        keys.sort_by_key(|key| std::cmp::Reverse(key.made_s));
        ring.0 = keys;
        // The file of a state folder that both have holds them already, or the next rotation
        // writes them.
        Some(inherited)
    }

    /// Whether no keys were made yet.
    fn is_empty(&self) -> bool {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).0.is_empty()
    }

    fn renew(&self) -> io::Result<()> {
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        if !ring.rotate(unix_s(), &random) {
            return Ok(());
        }
        let bytes = ring.to_bytes();
        drop(ring);
        self.file.as_deref().map_or(Ok(()), |file| write(file, &bytes))
    }

    /// The ticket producer for rustls of a listener with these demands on clients; makes the first
    /// keys if there are none.
    #[must_use]
    pub fn for_context(self: &Arc<Self>, context: TicketContext) -> Arc<dyn ProducesTickets> {
        if self.is_empty() {
            // Can fail only with a file, and then `open` has tried and returned the warning.
            let _ = self.renew();
        }
        Arc::new(Ticketer { tickets: self.clone(), context })
    }
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tickets")
    }
}

/// Writes a file that only this user may read, whole or not at all (by a rename).
fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let next = file.with_extension(format!("new-{}", std::process::id()));
    // Left by an earlier process of the same id that died while it wrote.
    let _ = fs::remove_file(&next);
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
    let done = out.write_all(bytes).and_then(|()| out.sync_all());
    done.and_then(|()| fs::rename(&next, file)).inspect_err(|_| {
        // A file that is only partly written is of no use.
        let _ = fs::remove_file(&next);
    })
}

/// The shared ring with one listener's demands.
#[derive(Debug)]
struct Ticketer {
    tickets: Arc<Tickets>,
    context: TicketContext,
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(LIFETIME_S).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let ring = self.tickets.ring.read().unwrap_or_else(PoisonError::into_inner);
        ring.seal(&self.context, plain, unix_s(), &random)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let ring = self.tickets.ring.read().unwrap_or_else(PoisonError::into_inner);
        ring.open(&self.context, cipher, unix_s())
    }
}

fn random(bytes: &mut [u8]) -> bool {
    provider().secure_random.fill(bytes).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;
    use proptest::prelude::*;
    use std::cell::RefCell;

    const HOUR: u64 = 3600;

    fn chance(seed: u64) -> impl Fn(&mut [u8]) -> bool {
        let rng = RefCell::new(Rng::new(seed));
        move |bytes| {
            bytes.iter_mut().for_each(|byte| *byte = rng.borrow_mut().next_u64() as u8);
            true
        }
    }

    fn context(byte: u8) -> TicketContext {
        TicketContext([byte; 32])
    }

    fn ring(seed: u64, now_s: u64) -> Keyring {
        let mut ring = Keyring::default();
        assert!(ring.rotate(now_s, &chance(seed)));
        ring
    }

    #[test]
    fn a_key_seals_for_half_a_day_and_opens_for_a_day_and_a_half() {
        let (random, start) = (chance(1), 1_000_000);
        let mut ring = ring(2, start);
        let ticket = |ring: &Keyring, now| ring.seal(&context(0), b"s", now, &random).unwrap();
        let first = ticket(&ring, start);
        assert!(!ring.rotate(start + 12 * HOUR - 1, &random), "not yet");
        assert_eq!(ticket(&ring, start)[..ID], first[..ID], "the same key");
        assert!(ring.rotate(start + 12 * HOUR, &random));
        assert_ne!(ticket(&ring, start)[..ID], first[..ID], "another key");
        let open = |ring: &Keyring, now| ring.open(&context(0), &first, now).is_some();
        assert!(open(&ring, start + 24 * HOUR - 1));
        assert!(!open(&ring, start + 24 * HOUR), "past its lifetime");
        ring.rotate(start + 24 * HOUR, &random);
        assert!(open(&ring, start), "two old keys open");
        ring.rotate(start + 36 * HOUR, &random);
        assert!(!open(&ring, start), "three do not");
        assert_eq!(ring.0.len(), KEYS_MAX);
    }

    #[test]
    fn keys_of_another_time_are_let_go() {
        let mut old = ring(1, 1_000_000);
        let id = old.0[0].id;
        assert!(old.rotate(1_000_000 + 40 * HOUR, &chance(2)));
        assert!(old.0.len() == 1 && old.0[0].id != id, "the process was away for long");
        assert!(old.rotate(1_000_000, &chance(3)));
        assert_eq!(old.0.len(), 1, "the clock went back");
    }

    #[test]
    fn a_ticket_ends_with_the_first_certificate_in_it() {
        use crate::pki::tests::authority::Authority;
        use rustls::pki_types::pem::PemObject as _;

        let authority = Authority::of("a", &[], 2031);
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        let (own, _) = authority.sign_until("app", &[], 2030);
        let (own, root) = (der(&own), der(&authority.cert));
        let end = facts(&CertificateDer::from(own.as_slice())).unwrap().not_after;
        let session =
            [b"\x30\x82\x00\x01 front\x30", &root[..], b"\0\x02\x30", &own, b"\x30\x81"].concat();
        assert_eq!(certificates_end(&session), Some(end));
        for now in [end - 10 * HOUR, end - 24 * HOUR, end - 10] {
            let ring = ring(1, now);
            let ticket = ring.seal(&context(0), &session, now, &chance(2)).unwrap();
            let open = |now| ring.open(&context(0), &ticket, now).is_some();
            assert!(open(now) && open(end.min(now + 24 * HOUR - 1)));
            assert!(!open(end + 1), "{}", end - now);
        }
        // Without a client's certificate, and with one that lives long: a day.
        let now = end - 100 * HOUR;
        for session in [&b"plain"[..], &session] {
            let ring = ring(1, now);
            let ticket = ring.seal(&context(0), session, now, &chance(2)).unwrap();
            assert!(ring.open(&context(0), &ticket, now + 24 * HOUR - 1).is_some());
            assert!(ring.open(&context(0), &ticket, now + 24 * HOUR).is_none());
        }
    }

    #[test]
    fn without_chance_there_is_no_ticket() {
        let never = |_: &mut [u8]| false;
        let mut ring = Keyring::default();
        ring.rotate(0, &never);
        assert_eq!(ring.seal(&context(0), b"s", 0, &chance(1)), None);
        ring.rotate(0, &chance(1));
        assert_eq!(ring.seal(&context(0), b"s", 0, &never), None);
    }

    #[test]
    fn a_file_of_something_else_is_none() {
        let whole = ring(1, 5).to_bytes();
        assert!(Keyring::from_bytes(&whole).is_some());
        for bad in [&b""[..], b"{}", &whole[..whole.len() - 1], &[&whole[..], b"x"].concat()] {
            assert!(Keyring::from_bytes(bad).is_none());
        }
        let many = [&whole[..], &whole[MAGIC.len()..].repeat(KEYS_MAX)].concat();
        assert!(Keyring::from_bytes(&many).is_none(), "KEYS_MAX bounds it");
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens_also_from_the_file(
            session in prop::collection::vec(any::<u8>(), 0..2000), seed in any::<u64>(), now in 0u64..1 << 40,
        ) {
            let ring = ring(seed, now);
            let ticket = ring.seal(&context(7), &session, now, &chance(seed ^ 1)).unwrap();
            prop_assert_eq!(ring.open(&context(7), &ticket, now), Some(session.clone()));
            prop_assert_eq!(ring.open(&context(8), &ticket, now), None);
            let again = Keyring::from_bytes(&ring.to_bytes()).unwrap();
            prop_assert_eq!(again.open(&context(7), &ticket, now), Some(session.clone()));
            // Beside the session nothing of it shows.
            let hidden = session.len() < 8 || !ticket.windows(session.len()).any(|w| w == session);
            prop_assert!(hidden);
        }

        #[test]
        fn a_flipped_bit_or_a_cut_does_not_open(
            session in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), bit in 0u8..8,
        ) {
            let ring = ring(1, 0);
            let ticket = ring.seal(&context(0), &session, 0, &chance(2)).unwrap();
            let at = at.index(ticket.len());
            prop_assert_eq!(ring.open(&context(0), &ticket[..at], 0), None);
            let mut flipped = ticket;
            flipped[at] ^= 1 << bit;
            prop_assert_eq!(ring.open(&context(0), &flipped, 0), None);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), now in any::<u64>()) {
            let ring = ring(1, now);
            prop_assert_eq!(ring.open(&context(0), &bytes, now), None);
            let ours = [&ring.0[0].id[..], &bytes].concat();
            prop_assert_eq!(ring.open(&context(0), &ours, now), None);
            let _ = Keyring::from_bytes(&bytes);
            if let Some(mut ring) = Keyring::from_bytes(&[MAGIC, &bytes].concat()) {
                ring.rotate(now, &chance(1));
            }
        }
    }
}
