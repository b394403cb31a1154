//! Calls that are wrong before their body, byte by byte as they go over the wire.

/// What is sent on a connection of its own, and how it may be answered.
pub struct Head {
    pub what: &'static str,
    pub bytes: Vec<u8>,
    /// 0: the connection is closed without a word.
    pub statuses: &'static [u16],
}

/// Refused as no call, or by its framing.
const BROKEN: &[u16] = &[400];
/// Not let in, whatever the path is.
const CLOSED: &[u16] = &[401];

/// A head of these lines behind the request line, with an end.
fn lines(target: &str, lines: &str) -> Vec<u8> {
    format!("{target} HTTP/1.1\r\n{lines}connection: close\r\n\r\n").into_bytes()
}

fn head(what: &'static str, bytes: Vec<u8>, statuses: &'static [u16]) -> Head {
    Head { what, bytes, statuses }
}

/// All of them; `key` is one that is known.
pub fn heads(key: &str) -> Vec<Head> {
    let kinds = [hosts(key), paths(key), methods(key), keys(key), framing(key), protocols(key)];
    kinds.into_iter().flatten().collect()
}

fn hosts(key: &str) -> Vec<Head> {
    let with = |what, target: &str, hosts: &str, statuses| {
        head(what, lines(target, &format!("{hosts}authorization: Bearer {key}\r\n")), statuses)
    };
    vec![
        with("no host", "GET /v1/models", "", BROKEN),
        with("two hosts", "GET /v1/models", "host: a\r\nhost: a\r\n", BROKEN),
        with("a host with a path", "GET /v1/models", "host: a/v1?\r\n", BROKEN),
        with("a host with a user", "GET /v1/models", "host: a@b\r\n", BROKEN),
        with("another host in the target", "GET http://169.254.169.254/v1/models", "host: a\r\n", BROKEN),
        with("the same host in the target", "GET http://a/v1/models", "host: a\r\n", &[200]),
        head("a host for a key", lines("GET /v1/models", "host: a/v1?\r\n"), BROKEN),
    ]
}

/// Ways around a path: each needs a key as any other, and then leads nowhere.
fn paths(key: &str) -> Vec<Head> {
    let odd = [
        "//v1/models",
        "/v1/../admin",
        "/%2e%2e/admin",
        "/v1/models%00",
        "/V1/models",
        "/v1/models/",
        "/v1//models",
        "/v1/./models",
        "/admin/v1/nodes",
        "/debug/pprof",
        "/metrics/../v1/models",
        "/health/../v1/models",
    ];
    let ways = |path: &&'static str| {
        let target = format!("GET {path}");
        let known = format!("host: a\r\nauthorization: Bearer {key}\r\n");
        [head(path, lines(&target, "host: a\r\n"), CLOSED), head(path, lines(&target, &known), &[404])]
    };
    odd.iter().flat_map(ways).collect()
}

fn methods(key: &str) -> Vec<Head> {
    let known = format!("host: a\r\nauthorization: Bearer {key}\r\n");
    let mut heads = Vec::new();
    for (method, what) in [
        ("TRACE", "a trace"),
        ("DELETE", "a deletion"),
        ("PATCH", "a patch"),
        ("PUT", "a put"),
        ("BREW", "tea"),
    ] {
        for path in ["/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/messages", "/generate"] {
            heads.push(head(what, lines(&format!("{method} {path}"), &known), &[405]));
        }
    }
    let connect = lines("CONNECT 169.254.169.254:80", &known.replace("host: a", "host: 169.254.169.254:80"));
    heads.push(head("a tunnel", connect, &[404, 405]));
    let other = format!("{known}x-http-method-override: POST\r\n");
    heads.push(head("another method in a header", lines("GET /v1/chat/completions", &other), &[405]));
    heads
}

fn keys(key: &str) -> Vec<Head> {
    let with = |what, said: &str| head(what, lines("GET /v1/models", &format!("host: a\r\n{said}")), CLOSED);
    let (half, _) = key.split_at(key.len() / 2);
    vec![
        with("no key", ""),
        with("an empty key", "authorization: Bearer \r\n"),
        with("a scheme alone", "authorization: Bearer\r\n"),
        with("another scheme", "authorization: Basic YTpi\r\n"),
        with("half a key", &format!("authorization: Bearer {half}\r\n")),
        with("a key and more", &format!("authorization: Bearer {key}x\r\n")),
        with("two keys", &format!("authorization: Bearer {key}\r\nauthorization: Bearer {key}\r\n")),
        head("a key in the query", lines(&format!("GET /v1/models?api_key={key}"), "host: a\r\n"), CLOSED),
        with("who it says it is for", "x-forwarded-for: 127.0.0.1\r\nx-baton-tenant: operator\r\n"),
        head(
            "a key with a zero",
            lines("GET /v1/models", &format!("host: a\r\nauthorization: Bearer {key}\0\r\n")),
            BROKEN,
        ),
        head(
            "a key of a mebibyte",
            lines("GET /v1/models", &format!("host: a\r\nauthorization: Bearer {}\r\n", "a".repeat(1 << 20))),
            &[431, 0],
        ),
        head(
            "a small scheme",
            lines("GET /v1/models", &format!("host: a\r\nauthorization: bearer {key}\r\n")),
            &[200],
        ),
    ]
}

fn framing(key: &str) -> Vec<Head> {
    let post = |rest: &str| {
        let known = format!("host: a\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n");
        lines("POST /v1/completions", &format!("{known}{rest}"))
    };
    let body = |rest: &str, body: &[u8]| [post(rest), body.to_vec()].concat();
    let prompt = br#"{"model":"mock","prompt":"hi","max_tokens":1}"#;
    let length = format!("content-length: {}\r\n", prompt.len());
    let named = |kind: &str| {
        let all = String::from_utf8_lossy(&body(&length, prompt)).replace("application/json", kind);
        all.into_bytes()
    };
    vec![
        head("two lengths", body("content-length: 5\r\ncontent-length: 6\r\n", b"{}"), BROKEN),
        head("a length of letters", body("content-length: five\r\n", b"{}"), BROKEN),
        head("a length below nothing", body("content-length: -1\r\n", b"{}"), BROKEN),
        head(
            "a length and chunks",
            body("content-length: 5\r\ntransfer-encoding: chunked\r\n", b"0\r\n\r\n"),
            BROKEN,
        ),
        head("another coding", body("transfer-encoding: gzip\r\n", b"{}"), BROKEN),
        head(
            "a chunk beyond all",
            body("transfer-encoding: chunked\r\n", b"FFFFFFFFFFFFFFFFF\r\n{}"),
            BROKEN,
        ),
        head("letters that are none", body("content-length: 4\r\n", b"{\"\xff\""), BROKEN),
        head(
            "a zipped body",
            body("content-length: 4\r\ncontent-encoding: gzip\r\n", b"\x1f\x8b\x08\0"),
            &[415],
        ),
        head("an unknown coding", body("content-length: 2\r\ncontent-encoding: x\r\n", b"{}"), &[415]),
        head("text", named("text/plain"), &[415]),
        head("a form", named("multipart/form-data; boundary=x"), &[415]),
        head("a body for a get", body_of_get(key), &[200]),
        head("a good call", body(&length, prompt), &[200]),
    ]
}

fn body_of_get(key: &str) -> Vec<u8> {
    let known = format!("host: a\r\nauthorization: Bearer {key}\r\ncontent-length: 2\r\n");
    [lines("GET /v1/models", &known), b"{}".to_vec()].concat()
}

fn protocols(key: &str) -> Vec<Head> {
    let known = format!("host: a\r\nauthorization: Bearer {key}\r\n");
    let many = "a: b\r\n".repeat(10_000);
    let mut heads = vec![
        head("what is no HTTP", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec(), &[400, 0]),
        head("another HTTP", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), &[400, 0]),
        head("nothing but lines", b"\r\n\r\n\r\n\r\nx\r\n\r\n".to_vec(), BROKEN),
        head("a future HTTP", b"GET /v1/models HTTP/9.9\r\nhost: a\r\n\r\n".to_vec(), BROKEN),
        head("an old HTTP", format!("GET /v1/models HTTP/1.0\r\n{known}\r\n").into_bytes(), &[200]),
        head("ten thousand headers", lines("GET /v1/models", &format!("host: a\r\n{many}")), &[431]),
        head(
            "a header of a mebibyte",
            lines("GET /v1/models", &format!("host: a\r\na: {}\r\n", "b".repeat(1 << 20))),
            &[431],
        ),
        head("a folded header", lines("GET /v1/models", &format!("{known}a: b\r\n c\r\n")), BROKEN),
        head("a header without a colon", lines("GET /v1/models", &format!("{known}nothing\r\n")), BROKEN),
        head(
            "an id of a line more",
            lines("GET /v1/models", &format!("{known}x-request-id: a\rb\r\n")),
            BROKEN,
        ),
        head(
            "an id of eight kibibytes",
            lines("GET /v1/models", &format!("{known}x-request-id: {}\r\n", "i".repeat(8 << 10))),
            &[200],
        ),
    ];
    let upgrade =
        format!("{known}upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AA==\r\n");
    heads.push(head("another protocol", lines("GET /v1/chat/completions", &upgrade), &[405]));
    heads
}
