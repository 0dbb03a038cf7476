//! Where an upstream is: its addresses, and the number under which connections to each are pooled.

use crate::net::dial::Address;

/// The number under which the connections to one address of one upstream are pooled.
///
/// Never given twice, so that a connection cannot pass for one to another server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub u64);

/// One address of an upstream.
#[derive(Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where to connect.
    pub address: Address,
    /// The pool of its idle connections.
    pub pool: PoolId,
}
