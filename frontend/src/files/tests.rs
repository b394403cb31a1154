//! Files of tenants, sent, listed, read and deleted over real sockets.

use reqwest::{
    Response,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use crate::{
    Config,
    batches::BatchLimits,
    tests::script::{Script, TestServer, says, soon},
};

/// A form with a file of this content.
pub fn form(content: &str) -> Form {
    Form::new().text("purpose", "batch").part("file", Part::text(content.to_owned()).file_name("in.jsonl"))
}

/// Sends a form.
pub async fn send(server: &TestServer, form: Form) -> Response {
    soon(server.client.post(format!("{}/v1/files", server.base)).multipart(form).send()).await.unwrap()
}

/// Keeps a file; returns its id.
pub async fn keep(server: &TestServer, content: &str) -> String {
    let response = send(server, form(content)).await;
    let (status, file) = (response.status(), response.json::<Value>().await.unwrap());
    assert_eq!(status, 200, "{file}");
    file["id"].as_str().unwrap().to_owned()
}

pub async fn get(server: &TestServer, path: &str) -> Value {
    let response = server.get(path).await;
    let status = response.status();
    let value: Value = response.json().await.unwrap();
    assert_eq!(status, 200, "{value}");
    value
}

async fn delete(server: &TestServer, path: &str) -> Response {
    soon(server.client.delete(format!("{}{path}", server.base)).send()).await.unwrap()
}

async fn error(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    (status, response.json::<Value>().await.unwrap()["error"].clone())
}

fn server(limits: BatchLimits) -> impl Future<Output = TestServer> {
    let config = Config { batches: limits, ..Config::default() };
    TestServer::configured(Script::saying(says(&["hello"])), config)
}

#[tokio::test]
async fn a_file_is_kept_told_of_read_and_deleted() {
    let server = server(BatchLimits::default()).await;
    let content = "{}\n".repeat(200_000);
    let file = send(&server, form(&content)).await.json::<Value>().await.unwrap();
    let id = file["id"].as_str().unwrap();
    assert_eq!(file["bytes"], content.len());
    assert_eq!((&file["filename"], &file["purpose"]), (&json!("in.jsonl"), &json!("batch")));
    assert!(file["expires_at"].as_u64() > file["created_at"].as_u64());
    assert_eq!(get(&server, &format!("/v1/files/{id}")).await, file);
    let read = server.get(&format!("/v1/files/{id}/content")).await.text().await.unwrap();
    assert!(read == content);
    assert_eq!(delete(&server, &format!("/v1/files/{id}")).await.status(), 200);
    for path in [format!("/v1/files/{id}"), format!("/v1/files/{id}/content")] {
        assert_eq!(server.get(&path).await.status(), 404);
    }
    assert_eq!(delete(&server, &format!("/v1/files/{id}")).await.status(), 404);
}

#[tokio::test]
async fn lists_come_in_parts() {
    let server = server(BatchLimits::default()).await;
    let mut ids = Vec::new();
    for content in ["a", "b", "c"] {
        ids.push(keep(&server, content).await);
    }
    let all = get(&server, "/v1/files?order=asc").await;
    let listed: Vec<_> = all["data"].as_array().unwrap().iter().map(|file| file["id"].clone()).collect();
    assert_eq!((json!(listed), &all["has_more"]), (json!(ids), &json!(false)));
    let first = get(&server, "/v1/files?limit=2&purpose=batch").await;
    assert_eq!((&first["last_id"], &first["has_more"]), (&json!(ids[1]), &json!(true)));
    let rest = get(&server, &format!("/v1/files?limit=2&after={}", ids[1])).await;
    assert_eq!((&rest["first_id"], &rest["has_more"]), (&json!(ids[0]), &json!(false)));
    assert_eq!(get(&server, "/v1/files?purpose=batch_output").await["data"], json!([]));
    for (query, param) in [("limit=0", "limit"), ("order=up", "order"), ("color=red", "color")] {
        let (status, error) = error(server.get(&format!("/v1/files?{query}")).await).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)));
    }
}

#[tokio::test]
async fn forms_that_will_not_do_are_refused_by_name() {
    let server = server(BatchLimits { max_file_bytes: 64, ..BatchLimits::default() }).await;
    let part = |content: &str| Part::text(content.to_owned());
    for (form, param) in [
        (Form::new().text("purpose", "batch"), "file"),
        (Form::new().part("file", part("x")), "purpose"),
        (Form::new().part("file", part("x")).text("purpose", "vision"), "purpose"),
        (form("x").text("color", "red"), "color"),
        (form("x").text("purpose", "batch"), "purpose"),
        (form("x").text("expires_after[anchor]", "created_at"), "expires_after.seconds"),
        (
            form("x").text("expires_after[anchor]", "created_at").text("expires_after[seconds]", "5"),
            "expires_after.seconds",
        ),
        (Form::new().part("file", part("x")).text("purpose", "x".repeat(2000)), "purpose"),
    ] {
        let (status, error) = error(send(&server, form).await).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{error}");
    }
    let (status, large) = error(send(&server, form(&"x".repeat(65))).await).await;
    assert_eq!((status, &large["code"]), (413, &json!("body_too_large")));
    assert_eq!(server.post("/v1/files", &json!({})).await.status(), 415);
    let broken = server.client.post(format!("{}/v1/files", server.base));
    let broken = broken.header("content-type", "multipart/form-data; boundary=x").body("--x\r\nnothing");
    assert_eq!(broken.send().await.unwrap().status(), 400);
    assert_eq!(get(&server, "/v1/files").await["data"], json!([]));
}

#[tokio::test]
async fn a_tenant_keeps_only_so_much() {
    let few = server(BatchLimits { max_files: 2, ..BatchLimits::default() }).await;
    let first = keep(&few, "a").await;
    keep(&few, "b").await;
    let (status, full) = error(send(&few, form("c")).await).await;
    assert_eq!((status, &full["code"]), (413, &json!("storage_full")));
    delete(&few, &format!("/v1/files/{first}")).await;
    keep(&few, "c").await;
    let small = server(BatchLimits { max_bytes: 10, ..BatchLimits::default() }).await;
    keep(&small, "123456").await;
    let (status, full) = error(send(&small, form("12345")).await).await;
    assert_eq!((status, &full["code"]), (413, &json!("storage_full")));
}
