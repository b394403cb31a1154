//! `baton batch IN OUT`: the calls of a file, answered by a server when it has room.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use crate::{
    args,
    client::Client,
    terminal::{note, say},
};

/// Between two looks at how far it is.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Sends the file, waits for the answers, and writes them. Ctrl-C gives the batch up and
/// writes what there is.
///
/// # Errors
/// When the server refuses it, or not all lines could be called.
pub async fn run(args: &args::Batch) -> Result<()> {
    let input = fs::read(&args.input).with_context(|| format!("cannot read {}", args.input.display()))?;
    let endpoint = endpoint(&input)?;
    let client = Client::new(&args.url, args.authority.file())?.with_own_key();
    let name = args.input.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let file = client.upload(name, input).await?;
    let asked = json!({ "input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h" });
    let begun = client.post("/v1/batches", &asked).await?;
    let batch = follow(&client, &begun).await?;
    for fault in batch["errors"]["data"].as_array().into_iter().flatten() {
        note(format_args!("line {}: {}", fault["line"], fault["message"].as_str().unwrap_or_default()));
    }
    let errors = errors_path(&args.output);
    take(&client, &batch["output_file_id"], &args.output).await?;
    take(&client, &batch["error_file_id"], &errors).await?;
    client.delete(&format!("/v1/files/{}", text(&file["id"])?)).await?;
    let counts = &batch["request_counts"];
    say(format_args!(
        "{} of {} answered, into {}",
        counts["completed"],
        counts["total"],
        args.output.display()
    ));
    if counts["failed"] != 0 {
        note(format_args!("{} failed, into {}", counts["failed"], errors.display()));
    }
    match text(&batch["status"])? {
        "completed" => Ok(()),
        status => bail!("the batch is {status}"),
    }
}

/// What the first line calls, and so all.
fn endpoint(input: &[u8]) -> Result<String> {
    let first = input.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty());
    let first = first.ok_or_else(|| anyhow!("the file has no lines"))?;
    let first: Value = serde_json::from_slice(first).context("the first line is no JSON")?;
    Ok(first["url"].as_str().ok_or_else(|| anyhow!("the first line has no url"))?.to_owned())
}

/// Where lines without a good answer go: beside the others.
fn errors_path(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(".errors");
    output.with_file_name(name)
}

/// Shows how far the batch is until it is finished.
async fn follow(client: &Client, begun: &Value) -> Result<Value> {
    let path = format!("/v1/batches/{}", text(&begun["id"])?);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {per_sec} {eta}");
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut given_up = false;
    loop {
        let batch = client.get(&path).await?;
        let counts = &batch["request_counts"];
        let number = |name: &str| counts[name].as_u64().unwrap_or_default();
        bar.set_length(number("total"));
        bar.set_position(number("completed") + number("failed"));
        bar.set_message(text(&batch["status"])?.to_owned());
        if ["completed", "failed", "expired", "cancelled"].contains(&text(&batch["status"])?) {
            bar.finish_and_clear();
            return Ok(batch);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            _ = tokio::signal::ctrl_c(), if !given_up => {
                given_up = true;
                // It may be finished by now.
                drop(client.post(&format!("{path}/cancel"), &json!({})).await);
            }
        }
    }
}

/// Fetches a file that the batch made, if it did, and deletes it there.
async fn take(client: &Client, id: &Value, to: &Path) -> Result<()> {
    let Some(id) = id.as_str() else { return Ok(()) };
    let content = client.content(&format!("/v1/files/{id}/content")).await?;
    fs::write(to, content).with_context(|| format!("cannot write {}", to.display()))?;
    client.delete(&format!("/v1/files/{id}")).await
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().ok_or_else(|| anyhow!("the server's answer lacks a field"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_says_what_is_called() {
        assert_eq!(endpoint(b"\n{\"url\": \"/v1/completions\"}\nx").unwrap(), "/v1/completions");
        for wrong in [&b"\n"[..], b"{", b"{}"] {
            assert!(endpoint(wrong).is_err());
        }
    }

    #[test]
    fn failures_go_beside_the_answers() {
        assert_eq!(errors_path(Path::new("a/out.jsonl")), Path::new("a/out.jsonl.errors"));
    }
}
