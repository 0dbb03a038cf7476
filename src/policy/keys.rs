//! The clients' keys: whose a credential is, and what it may do.
//!
//! Keys are kept as SHA-256 digests only, so neither a log nor a core dump of the
//! table gives one away. A lookup compares the digest with *every* entry, each in
//! constant time and without leaving early: its duration tells nothing of which entry came
//! close. That costs a few nanoseconds an entry, which thousands of keys can bear.
//!
//! It counts nothing: rates are `limit`'s.

use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::error::Kind;

/// Longest credential that is looked at, in bytes; a longer one is invalid.
pub const CREDENTIAL_BYTES_MAX: usize = 4096;

/// A key's place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub u32);

/// A SHA-256 digest, as the words that are compared.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyDigest([u64; 4]);

impl KeyDigest {
    /// Digests a key; allocates nothing.
    pub fn of(secret: &[u8]) -> KeyDigest {
        KeyDigest::from_bytes(&Sha256::digest(secret).into())
    }

    /// Takes a digest that was computed elsewhere.
    pub fn from_bytes(bytes: &[u8; 32]) -> KeyDigest {
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = chunk.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        }
        KeyDigest(words)
    }

    /// Compares all words at once: the differences are gathered first, without a branch,
    /// and one comparison in constant time decides.
    fn ct_eq(&self, other: &KeyDigest) -> Choice {
        let words = self.0.iter().zip(&other.0);
        words.fold(0, |differing, (a, b)| differing | (a ^ b)).ct_eq(&0)
    }
}

impl std::fmt::Debug for KeyDigest {
    // A digest of a weak key can be guessed: not even this is printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyDigest(..)")
    }
}

/// One key and its rights.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its name, for logs and labels.
    pub name: Box<str>,
    /// Its digest; `None` = no secret belongs to it, only a certificate with its name.
    pub digest: Option<KeyDigest>,
    /// The digest of the secret before, and the Unix second from which on it is invalid.
    pub previous: Option<(KeyDigest, u64)>,
    /// The models it may use.
    pub models: ModelRights,
    /// The listeners it may use; `None` = all.
    pub listeners: Option<Box<[u16]>>,
    /// The Unix second from which on it is invalid; `None` = never.
    pub expires_at: Option<u64>,
}

/// Marks the index of a key whose secret before was found.
const PREVIOUS: u32 = 1 << 31;

/// All keys, in declared order.
#[derive(Clone, Debug, Default)]
pub struct KeyTable {
    keys: Vec<Key>,
    /// The digests alone, so that a lookup walks little memory; each with its key's index, and
    /// `PREVIOUS` where it is that of the secret before.
    digests: Vec<(u32, KeyDigest)>,
    /// Indexes in the order of names.
    by_name: Vec<u32>,
}

/// Two keys are the same: the second could never be told from the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyTwice {
    /// Index of the earlier one.
    pub first: usize,
    /// Index of the later one.
    pub second: usize,
}

impl KeyTable {
    /// Builds the table. Ids are indexes in the order given.
    ///
    /// Errors: `KeyTwice` when two keys have the same digest.
    pub fn new(keys: Vec<Key>) -> Result<KeyTable, KeyTwice> {
        let mut digests = Vec::new();
        let mut seen = std::collections::HashMap::new();
        for (second, key) in keys.iter().enumerate() {
            let previous = key.previous.map(|(digest, _)| (PREVIOUS, digest));
            for (mark, digest) in key.digest.map(|digest| (0, digest)).into_iter().chain(previous) {
                if let Some(first) = seen.insert(digest, second) {
                    return Err(KeyTwice { first, second });
                }
                digests.push((second as u32 | mark, digest));
            }
        }
        let mut by_name: Vec<u32> = (0..keys.len() as u32).collect();
        by_name.sort_by(|a, b| keys[*a as usize].name.cmp(&keys[*b as usize].name));
        Ok(KeyTable { keys, digests, by_name })
    }

    /// Finds whose digest this is.
    ///
    /// Shape: walks the whole table in constant time, whatever it finds.
    pub fn find(&self, digest: &KeyDigest) -> Option<KeyId> {
        self.find_marked(digest).map(|found| KeyId(found & !PREVIOUS))
    }

    /// As `find`, with the mark.
    fn find_marked(&self, digest: &KeyDigest) -> Option<u32> {
        let mut found = u32::MAX;
        for (index, known) in &self.digests {
            found.conditional_assign(index, known.ct_eq(digest));
        }
        (found != u32::MAX).then_some(found)
    }

    /// Tells whose secret this is, and whether the key may be used here and now.
    ///
    /// Units: `now_s` is Unix time in seconds.
    /// Errors: `KeyInvalid` (unknown, too long or expired), `KeyNotAllowed` (not on this
    /// listener).
    pub fn authenticate(&self, secret: &[u8], listener: u16, now_s: u64) -> Result<KeyId, Kind> {
        if secret.len() > CREDENTIAL_BYTES_MAX {
            return Err(Kind::KeyInvalid);
        }
        let found = self.find_marked(&KeyDigest::of(secret)).ok_or(Kind::KeyInvalid)?;
        let id = KeyId(found & !PREVIOUS);
        if found & PREVIOUS != 0 {
            let previous = self.key(id).and_then(|key| key.previous);
            if previous.is_none_or(|(_, until)| now_s >= until) {
                return Err(Kind::KeyInvalid);
            }
        }
        self.check(id, listener, now_s)
    }

    /// Tells which key a client has whose certificate, verified, gives it this name; `None` when
    /// there is no such key, and the certificate stands for nobody.
    ///
    /// Units, Errors: as `authenticate`.
    pub fn certified(&self, name: &str, listener: u16, now_s: u64) -> Option<Result<KeyId, Kind>> {
        Some(self.check(self.named(name)?, listener, now_s))
    }

    /// Whether a key may be used here and now.
    fn check(&self, id: KeyId, listener: u16, now_s: u64) -> Result<KeyId, Kind> {
        let key = self.key(id).ok_or(Kind::KeyInvalid)?;
        if key.expires_at.is_some_and(|expires_at| now_s >= expires_at) {
            return Err(Kind::KeyInvalid);
        }
        match &key.listeners {
            Some(listeners) if !listeners.contains(&listener) => Err(Kind::KeyNotAllowed),
            _ => Ok(id),
        }
    }

    /// Returns a key by its id; `None` when the id is of another table.
    pub fn key(&self, id: KeyId) -> Option<&Key> {
        self.keys.get(id.0 as usize)
    }

    /// Finds a key by its name, for the `keys` of a route.
    pub fn named(&self, name: &str) -> Option<KeyId> {
        let name_of = |index: &u32| self.keys.get(*index as usize).map_or("", |key| &*key.name);
        let at = self.by_name.binary_search_by(|index| name_of(index).cmp(name)).ok()?;
        self.by_name.get(at).map(|index| KeyId(*index))
    }
}

/// The models that a key may use: names, and globs with a `*` at their end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRights {
    rules: Box<[ModelRule]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum ModelRule {
    Exact(Box<str>),
    /// What stands before the `*`; empty = all.
    Prefix(Box<str>),
}

impl ModelRights {
    /// Reads the entries of a key's `models`; a `*` counts only at the end of an entry.
    pub fn new(entries: impl IntoIterator<Item = impl AsRef<str>>) -> ModelRights {
        let rule = |entry: &str| match entry.strip_suffix('*') {
            Some(prefix) => ModelRule::Prefix(prefix.into()),
            None => ModelRule::Exact(entry.into()),
        };
        ModelRights { rules: entries.into_iter().map(|entry| rule(entry.as_ref())).collect() }
    }

    /// Tells whether a model of this name may be used.
    pub fn allow(&self, model: &str) -> bool {
        self.rules.iter().any(|rule| match rule {
            ModelRule::Exact(name) => **name == *model,
            ModelRule::Prefix(prefix) => model.starts_with(&**prefix),
        })
    }

    /// Tells whether every model may be used, so that a request need not name one.
    pub fn allow_all(&self) -> bool {
        self.rules.iter().any(|rule| matches!(rule, ModelRule::Prefix(p) if p.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(name: &str) -> Key {
        Key {
            name: name.into(),
            digest: Some(KeyDigest::of(name.as_bytes())),
            previous: None,
            models: ModelRights::new(["*"]),
            listeners: None,
            expires_at: None,
        }
    }

    fn one(key: Key) -> KeyTable {
        KeyTable::new(vec![key]).unwrap()
    }

    #[test]
    fn tells_whose_key_it_is() {
        let table = KeyTable::new(vec![key("a"), key("b"), key("c")]).unwrap();
        assert_eq!(table.authenticate(b"b", 0, 0), Ok(KeyId(1)));
        assert_eq!(table.named("c"), Some(KeyId(2)));
        assert_eq!(&*table.key(KeyId(2)).unwrap().name, "c");
    }

    #[test]
    fn refuses_what_is_no_key() {
        let table = one(key("a"));
        for secret in [&b""[..], b"A", b"a ", b"aa", &[b'a'; CREDENTIAL_BYTES_MAX + 1]] {
            assert_eq!(table.authenticate(secret, 0, 0), Err(Kind::KeyInvalid));
        }
        assert_eq!(KeyTable::default().authenticate(b"a", 0, 0), Err(Kind::KeyInvalid));
    }

    #[test]
    fn accepts_a_credential_of_the_longest_length() {
        let longest = "a".repeat(CREDENTIAL_BYTES_MAX);
        assert!(one(key(&longest)).authenticate(longest.as_bytes(), 0, 0).is_ok());
    }

    #[test]
    fn a_certificate_stands_for_the_key_of_its_name() {
        let only_certified = Key { digest: None, expires_at: Some(9), ..key("m") };
        let elsewhere = Key { listeners: Some([3].into()), ..key("e") };
        let table = KeyTable::new(vec![key("z"), only_certified, elsewhere, key("a")]).unwrap();
        assert_eq!(table.certified("a", 0, 0), Some(Ok(KeyId(3))));
        assert_eq!(table.certified("m", 0, 8), Some(Ok(KeyId(1))));
        assert_eq!(table.certified("m", 0, 9), Some(Err(Kind::KeyInvalid)));
        assert_eq!(table.certified("e", 0, 0), Some(Err(Kind::KeyNotAllowed)));
        assert_eq!(table.certified("e", 3, 0), Some(Ok(KeyId(2))));
        assert_eq!((table.certified("b", 0, 0), table.certified("", 0, 0)), (None, None));
        assert_eq!(table.authenticate(b"m", 0, 0), Err(Kind::KeyInvalid), "it has no secret");
        assert_eq!(table.authenticate(b"a", 0, 0), Ok(KeyId(3)), "behind one without");
        let without = |name| Key { digest: None, ..key(name) };
        assert!(KeyTable::new(vec![without("a"), without("b")]).is_ok());
    }

    #[test]
    fn expires_at_its_second() {
        let table = one(Key { expires_at: Some(100), ..key("a") });
        assert!(table.authenticate(b"a", 0, 99).is_ok());
        assert_eq!(table.authenticate(b"a", 0, 100), Err(Kind::KeyInvalid));
    }

    #[test]
    fn the_secret_before_is_good_until_its_second() {
        let previous = Some((KeyDigest::of(b"old"), 100));
        let limited = Key { previous, expires_at: Some(90), ..key("z") };
        let other = Key { previous: Some((KeyDigest::of(b"older"), 100)), ..key("b") };
        let table = KeyTable::new(vec![key("x"), limited, other]).unwrap();
        assert_eq!(table.authenticate(b"older", 0, 99), Ok(KeyId(2)));
        assert_eq!(table.authenticate(b"older", 0, 100), Err(Kind::KeyInvalid));
        assert_eq!(table.authenticate(b"b", 0, 100), Ok(KeyId(2)), "the new one stays");
        assert_eq!(table.authenticate(b"old", 0, 89), Ok(KeyId(1)));
        assert_eq!(table.authenticate(b"old", 0, 90), Err(Kind::KeyInvalid), "the key has ended");
        let twice = KeyTable::new(vec![key("old"), Key { previous, ..key("a") }]);
        assert_eq!(twice.err(), Some(KeyTwice { first: 0, second: 1 }));
    }

    #[test]
    fn holds_only_on_its_listeners() {
        let table = one(Key { listeners: Some([1, 3].into()), ..key("a") });
        assert!(table.authenticate(b"a", 3, 0).is_ok());
        assert_eq!(table.authenticate(b"a", 2, 0), Err(Kind::KeyNotAllowed));
    }

    #[test]
    fn refuses_the_same_key_twice() {
        let twice = KeyTable::new(vec![key("a"), key("b"), Key { name: "x".into(), ..key("a") }]);
        assert_eq!(twice.err(), Some(KeyTwice { first: 0, second: 2 }));
    }

    #[test]
    fn digests_as_the_standard_says() {
        // FIPS 180-4, the message "abc".
        let digest =
            [0xba7816bf8f01cfea, 0x414140de5dae2223, 0xb00361a396177a9c, 0xb410ff61f20015ad];
        assert_eq!(KeyDigest(digest), KeyDigest::of(b"abc"));
    }

    #[test]
    fn never_prints_a_digest() {
        assert!(!format!("{:?}", one(key("a"))).contains(|c: char| c.is_ascii_digit() && c > '0'));
    }

    #[test]
    fn models_are_exact_or_globs() {
        let rights = ModelRights::new(["gpt-4", "llama*"]);
        for model in ["gpt-4", "llama", "llama3"] {
            assert!(rights.allow(model), "{model}");
        }
        for model in ["gpt-4o", "gpt", "Llama3", "", "xllama"] {
            assert!(!rights.allow(model), "{model}");
        }
        assert!(!rights.allow_all());
        assert!(ModelRights::new(["x", "*"]).allow_all());
        assert!(!ModelRights::new([""; 0]).allow("x"));
    }

    #[test]
    fn a_star_counts_only_at_the_end() {
        let rights = ModelRights::new(["a*b"]);
        assert!(rights.allow("a*b") && !rights.allow("axb"));
    }

    proptest! {
        #[test]
        fn finds_exactly_the_keys_that_are_there(
            names in proptest::collection::hash_set("[a-c]{0,3}", 0..20), probe in "[a-c]{0,3}",
        ) {
            let names: Vec<_> = names.into_iter().collect();
            let table = KeyTable::new(names.iter().map(|n| key(n)).collect()).unwrap();
            let expected = names.iter().position(|n| *n == probe).map(|i| KeyId(i as u32));
            prop_assert_eq!(table.find(&KeyDigest::of(probe.as_bytes())), expected);
        }
    }
}
