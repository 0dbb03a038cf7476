//! quick bench main
use tokenring::proxy::plan::*;
use tokenring::policy::*;
use std::time::Duration;
fn main() {
    let s = Duration::from_secs;
    let up = UpstreamPlan{ name:"mock".into(), addresses: vec![tokenring::net::dial::Address::Tcp("127.0.0.1:9000".parse().unwrap())], enabled:true, state: Default::default(), path: PathPlan::Append(vec![]), host_line: Some(b"Host: 127.0.0.1:9000\r\n".to_vec()), credential: Credential::None, dropped: vec![], added: vec![], inserted: vec![], user_agent:false, reuse: Reuse::Auto };
    let plan = Plan{ listeners: vec![ListenerPlan{number:0,name:"main".into(), carriers: vec![], keys_required:false, default_group:None, trusted: vec![], forwarded: true, paths: route::PathTable::new(Vec::<(String,RouteTarget)>::new()).unwrap(), hosts: host::HostTable::new(Vec::<(String,RouteTarget)>::new()).unwrap(), timeouts: ClientTimeouts{head:s(15),body_idle:s(60),keepalive:s(75),write_idle:s(60)}}],
      keys: keys::KeyTable::new(vec![]).unwrap(), models: model::ModelTable::new(vec![model::ModelEntry{name:"mock-model".into(), group:0, ..Default::default()}], vec![], vec![], vec![]).unwrap(), listed: vec![], groups: vec![GroupPlan{name:"mock".into(), strategy: balance::Strategy::RoundRobin, members: vec![(0,1)], retry: retry::RetryPolicy::NEVER, timeouts: UpstreamTimeouts{connect:s(10),first_byte:s(600),stream_idle:s(300),total:s(0)}}],
      upstreams: vec![up], head: tokenring::http1::parse::HeadLimits::default(), body_bytes_max: 64<<20, body_held_bytes_max: 2<<20, tcp_keepalive: s(30), pool_idle: s(60), loaded_unix_s: 0 };
    let server = tokenring::server::Server::start(plan, tokenring::server::Options{ cores: vec![std::env::var("CPU").ok().and_then(|v| v.parse().ok())], io: tokenring::net::rt::Wanted::Auto, drain: s(5), connections_max: 10000, held_total_bytes: 1<<30, binds: vec![(0, tokenring::net::dial::Address::Tcp("127.0.0.1:8000".parse().unwrap()))], seed: 1}).unwrap();
    println!("{:?} {}", server.address(), server.drivers[0]);
    server.join();
}
