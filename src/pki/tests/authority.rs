//! Certificates for tests, made on the spot.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

/// An authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, PEM.
    pub(crate) cert: String,
    /// Its key, PEM.
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        Self::of(name, &[], 2099)
    }

    /// One that is also the server of these names, until this year.
    pub(crate) fn of(name: &str, names: &[&str], year: i32) -> Self {
        let mut params = params(name, names);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = date_time_ymd(year, 1, 1);
        let pair = KeyPair::generate().unwrap();
        let cert = params.self_signed(&pair).unwrap().pem();
        let key = pair.serialize_pem();
        Self { issuer: Issuer::new(params, pair), cert, key }
    }

    /// Certificate and key of somebody, PEM.
    pub(crate) fn sign(&self, common_name: &str, names: &[&str]) -> (String, String) {
        self.sign_until(common_name, names, 2099)
    }

    pub(crate) fn sign_until(
        &self,
        common_name: &str,
        names: &[&str],
        year: i32,
    ) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = params(common_name, names);
        params.not_after = date_time_ymd(year, 1, 1);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Certificate and key of a server with this key.
    pub(crate) fn sign_key(&self, key: &KeyPair, name: &str) -> (String, String) {
        let params = params(name, &[name]);
        (params.signed_by(key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

fn params(common_name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params
}
