//! rules §9, §4: bodies reach the other side byte for byte, whatever their size and framing.

use super::house::house;
use super::wire::{Client, noise, post, post_chunked, sha256};

/// Echoes a body of this length and compares both ways.
fn check(mock: &loadtest::mock::Mock, client: &mut Client, request: &[u8], body: &[u8]) {
    mock.forget_seen();
    let mut writer = client.stream();
    let answer = std::thread::scope(|scope| {
        scope.spawn(move || {
            std::io::Write::write_all(&mut writer, request).expect("the proxy reads")
        });
        client.answer()
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.body == body, "what came back differs");
    let seen = mock.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].body_bytes, body.len() as u64);
    assert_eq!(seen[0].body_sha256, sha256(body), "what arrived differs");
}

const SIZES: [usize; 9] = [0, 1, 1000, 4095, 16_383, 16_385, 65_536, 300_000, 10_000_000];

#[test]
fn passes_bodies_with_a_length_byte_for_byte() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    for size in SIZES {
        let body = noise(size as u64, size);
        check(&mock, &mut client, &post("/echo", "", &body), &body);
        assert!(!mock.seen()[0].chunked);
    }
}

#[test]
fn passes_bodies_in_chunks_byte_for_byte() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    for size in SIZES {
        let body = noise(size as u64, size);
        let pieces: Vec<&[u8]> = body.chunks(40_961).collect();
        check(&mock, &mut client, &post_chunked("/echo", "", &pieces), &body);
        assert!(mock.seen()[0].chunked);
    }
}

#[test]
fn passes_chunks_of_one_byte() {
    let (mock, proxy) = house();
    let body = noise(1, 20_000);
    let pieces: Vec<&[u8]> = body.chunks(1).collect();
    check(&mock, &mut proxy.client(), &post_chunked("/echo", "", &pieces), &body);
}

#[test]
fn passes_bodies_sent_one_byte_at_a_time() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    let body = noise(2, 1500);
    client.send_bytewise(&post("/echo", "", &body));
    assert_eq!(client.answer().body, body);
    client.send_bytewise(&post_chunked("/echo", "", &[&body[..700], &body[700..]]));
    assert_eq!(client.answer().body, body);
    for request in mock.seen() {
        assert_eq!(request.body_sha256, sha256(&body));
    }
}

#[test]
fn passes_a_model_request_sent_one_byte_at_a_time() {
    let (mock, proxy) = house();
    let body = br#"{"messages":[{"role":"user","content":"\"model\":\"x\""}],"model":"m"}"#;
    for request in [
        post("/v1/chat/completions", "", body),
        post_chunked("/v1/chat/completions", "", &[&body[..20], &body[20..]]),
    ] {
        let mut client = proxy.client();
        assert_eq!(client.send_bytewise(&request).answer().status, 200);
    }
    for request in mock.seen() {
        assert_eq!(request.body_sha256, sha256(body));
    }
}

#[test]
fn passes_model_requests_of_every_size_byte_for_byte() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    for size in SIZES {
        let pad = "x".repeat(size);
        // Both orders: the SDKs send `model` last.
        for body in [
            format!("{{\"model\":\"m\",\"messages\":[\"{pad}\"]}}"),
            format!("{{\"messages\":[\"{pad}\"],\"model\":\"m\"}}"),
        ] {
            for request in [
                post("/v1/chat/completions", "", &body),
                post_chunked("/v1/chat/completions", "", &[body.as_bytes()]),
            ] {
                mock.forget_seen();
                assert_eq!(client.send(request).answer().status, 200, "{size}");
                let seen = mock.seen();
                assert_eq!(seen[0].body_bytes, body.len() as u64);
                assert_eq!(seen[0].body_sha256, sha256(body.as_bytes()), "{size}");
            }
        }
    }
}

#[test]
fn passes_answers_of_every_size_and_framing() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    for size in SIZES {
        for how in ["", "chunked,", "no_length,", "trailers,"] {
            let path = format!("/echo?mock={how}big={size},seed=9");
            let answer = client.send(super::wire::get(&path, "")).answer();
            assert!(answer.body == noise(9, size), "{how} {size}");
        }
    }
}

#[test]
fn passes_an_answer_sent_one_byte_at_a_time() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    for how in ["one_byte", "one_byte,chunked", "one_byte,no_length"] {
        let path = format!("/echo?mock={how},big=2000,seed=4");
        assert_eq!(client.send(super::wire::get(&path, "")).answer().body, noise(4, 2000));
    }
}

#[test]
fn relays_trailers_both_ways() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    client.send(
        "POST /echo?mock=trailers HTTP/1.1\r\nHost: a\r\nTrailer: x-sum\r\n\
         Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx-sum: 7\r\n\r\n",
    );
    let answer = client.answer();
    assert_eq!(answer.trailers, "x-mock-trailer: yes\r\nx-mock-count: 2\r\n");
    assert_eq!(&mock.seen()[0].trailers[..], b"x-sum: 7\r\n");
}

#[test]
fn passes_many_bodies_at_once_without_mixing_them() {
    let (_mock, proxy) = house();
    std::thread::scope(|scope| {
        for worker in 0..8u64 {
            let mut client = proxy.client();
            scope.spawn(move || {
                for turn in 0..20 {
                    let body = noise(worker * 100 + turn, 1000 + 3777 * turn as usize);
                    let answer = client.send(post("/echo", "", &body)).answer();
                    assert!(answer.body == body, "worker {worker}, turn {turn}");
                }
            });
        }
    });
}
