//! A value that must not be seen.
//!
//! The one idea: `Debug` and `Display` print `***`, so that no log line, error
//! or derived `Debug` further up can show it by accident. `expose` is the only
//! way to the bytes and is easy to search for. It does not wipe memory on drop:
//! the file, the environment and the request hold copies anyway.

use std::fmt;

use subtle::ConstantTimeEq;

/// Bytes of a credential; prints as `***`.
#[derive(Clone)]
pub struct Secret(Box<[u8]>);

impl Secret {
    /// Takes the bytes of a credential.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into().into_boxed_slice())
    }

    /// The bytes themselves, for the one place that must send or hash them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for Secret {
    /// In constant time, whoever compares it with what.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn prints_as_stars() {
        let secret = Secret::new("sk-very-secret");
        assert_eq!(format!("{secret} {secret:?} {:#?}", Some(&secret)).matches("***").count(), 3);
        assert!(!format!("{secret} {secret:?}").contains("very"));
        assert_eq!(secret.expose(), b"sk-very-secret");
        assert!(secret == secret.clone() && secret != Secret::new("sk-very-secreT"));
    }
}
