//! Generates what is written and read from `proto/`: as messages, and as JSON with its schemas.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let json = "#[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]";
    let mut builder = tonic_prost_build::configure().btree_map(".").message_attribute(".", json);
    // What comes from outside: a name that is not known is an error, and so is one that is missing, but for these.
    for message in ["Limits", "Class", "Drain", "Roles"] {
        builder = builder.message_attribute(message, "#[serde(deny_unknown_fields)]");
    }
    for field in [
        "Limits.classes",
        "Class.model",
        "Class.min_priority",
        "Class.max_priority",
        "Class.ttft_ms",
        "Class.itl_ms",
        "Class.kept_by_nodes",
        "Drain.force",
        "Roles.force",
    ] {
        builder = builder.field_attribute(field, "#[serde(default)]");
    }
    // Always there, which the other end of a message may not believe.
    for part in ["Node.load", "Node.pages", "Node.step_model", "Pace.ttft", "Pace.itl"] {
        builder = builder.field_attribute(part, "#[schemars(required)]");
    }
    builder.compile_protos(&["proto/admin.proto"], &["proto"])?;
    Ok(())
}
