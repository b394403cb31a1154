//! What an operator does, through the command line.

use std::process::Command;

use serde_json::Value;

use super::{Cluster, PATIENCE, eventually};

/// The admin API through the command line.
#[derive(Clone)]
pub struct Operator {
    url: String,
}

impl Operator {
    /// Of the cluster's coordinator, or of the one process that is all of it.
    pub fn of(cluster: &Cluster) -> Self {
        let node = cluster.nodes.get("coordinator").unwrap_or_else(|| &cluster.nodes["local"]);
        let line = node.wait_for("admin at ", PATIENCE);
        Self { url: line.split("admin at ").nth(1).unwrap().trim().to_owned() }
    }

    /// Of the admin API.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What comes of a command, or why it was refused.
    pub async fn does(&self, words: &[&str]) -> Result<Value, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
        command.args(["admin", "--json", "--url", &self.url]).args(words);
        let done = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        if done.status.success() {
            return Ok(serde_json::from_slice(&done.stdout).unwrap());
        }
        Err(String::from_utf8_lossy(&done.stderr).into_owned())
    }

    /// The requests in flight, if the coordinator says.
    pub async fn requests(&self, http: &reqwest::Client) -> Option<Vec<Value>> {
        self.list(http, "requests").await
    }

    /// One of them, if it is in flight.
    pub async fn request(&self, http: &reqwest::Client, id: &Value) -> Option<Value> {
        self.requests(http).await?.into_iter().find(|request| request["id"] == *id)
    }

    /// The nodes as the coordinator sees them, if it says.
    pub async fn nodes(&self, http: &reqwest::Client) -> Option<Vec<Value>> {
        self.list(http, "nodes").await
    }

    /// Over HTTP, which takes less time than a command.
    async fn list(&self, http: &reqwest::Client, what: &str) -> Option<Vec<Value>> {
        http.get(format!("{}/admin/v1/{what}", self.url)).send().await.ok()?.json().await.ok()
    }

    /// The requests in flight, once they are as wanted.
    pub async fn sees(&self, what: &str, is_so: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        eventually(what, || async {
            let requests = self.does(&["requests"]).await.unwrap();
            let requests = requests.as_array().unwrap().clone();
            is_so(&requests).then_some(requests)
        })
        .await
    }
}
