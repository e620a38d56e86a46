//! DataFusion's messages without what only its developers understand.

/// The message as a user can read it.
pub(super) fn plain(message: String) -> String {
    if message.starts_with("Unsupported interval argument") {
        return "[INVALID_INTERVAL_FORMAT.ARITHMETIC_EXCEPTION] Error parsing the INTERVAL: uncaught arithmetic \
                exception while parsing, its value does not fit. SQLSTATE: 22006"
            .to_owned();
    }
    if let Some((_, rest)) = message.split_once("coercion failed with: ")
        && let Some((reason, _)) = rest.rsplit_once(" No function matches")
    {
        return without_kind(reason).to_owned();
    }
    let message = match message.split_once("\n\tCandidate functions:") {
        Some((said, _)) => said.trim_end().to_owned(),
        None => message,
    };
    // The Debug form of an error inside an error.
    if let Some(rest) = message.strip_prefix("Execution(\"")
        && let Some((reason, rest)) = rest.split_once("\")")
    {
        return format!("{reason}{rest}");
    }
    match message.split_once(" To allow duplicate keys with last-value-wins") {
        Some((said, _)) => said.to_owned(),
        None => message,
    }
}

fn without_kind(mut message: &str) -> &str {
    while let Some(rest) = ["Execution error: ", "Error during planning: ", "Internal error: "]
        .iter()
        .find_map(|kind| message.strip_prefix(kind))
    {
        message = rest;
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_datafusion_shows() {
        for (given, shown) in [
            (
                "Execution error: Function 'coalesce' user-defined coercion failed with: Execution error: coalesce must \
                 have at least one argument. No function matches the given name and argument types 'coalesce()'. You \
                 might need to add explicit type casts.\n\tCandidate functions:\n\tcoalesce(UserDefined)",
                "coalesce must have at least one argument.",
            ),
            ("Execution(\"Invalid type: Utf8\"), format string: \"%d\"", "Invalid type: Utf8, format string: \"%d\""),
            (
                "[DUPLICATED_MAP_KEY] Duplicate map key 1 was found. To allow duplicate keys with last-value-wins \
                 semantics, set `datafusion.spark.map_key_dedup_policy` to `LAST_WIN`.",
                "[DUPLICATED_MAP_KEY] Duplicate map key 1 was found.",
            ),
            ("x\n\tCandidate functions:\n\tf(Any)", "x"),
        ] {
            assert_eq!(plain(given.to_owned()), shown);
        }
    }
}
