//! Whether the broker serves.

use std::fmt::Write;

use crate::context::Context;

/// What was looked at; `None`: it is as it should be.
#[derive(Debug)]
pub struct Health {
    checks: Vec<(&'static str, Option<String>)>,
}

impl Health {
    pub fn of(ctx: Option<&Context>) -> Health {
        let Some(ctx) = ctx else {
            return Health { checks: vec![("broker", Some("it is starting".to_owned()))] };
        };
        let loading = |error: caudal_protocol::ErrorCode| error.is_error().then(|| error.message().to_owned());
        let transactions = ctx.transactions.view(|_| ()).err();
        let checks = vec![
            ("broker", None),
            ("log_dir", ctx.replicas.log_dirs.check_online().err().map(|offline| offline.to_string())),
            ("groups", loading(ctx.groups.readiness_to_list())),
            ("transactions", transactions.and_then(loading)),
        ];
        Health { checks }
    }

    pub fn is_ready(&self) -> bool {
        self.checks.iter().all(|(_, problem)| problem.is_none())
    }

    pub fn to_json(&self) -> String {
        let mut text = String::from(if self.is_ready() { "{\"status\":\"ok\"" } else { "{\"status\":\"unavailable\"" });
        text.push_str(",\"checks\":{");
        for (at, (name, problem)) in self.checks.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            let _ = write!(text, "{comma}\"{name}\":");
            push_string(&mut text, problem.as_deref().unwrap_or("ok"));
        }
        text.push_str("}}\n");
        text
    }
}

fn push_string(text: &mut String, value: &str) {
    text.push('"');
    for c in value.chars() {
        match c {
            '"' | '\\' => {
                text.push('\\');
                text.push(c);
            }
            c if c.is_control() => _ = write!(text, "\\u{:04x}", u32::from(c)),
            c => text.push(c),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted() {
        let health = Health { checks: vec![("a", None), ("b", Some("no \"x\\y\"\n".to_owned()))] };
        assert_eq!(
            health.to_json(),
            "{\"status\":\"unavailable\",\"checks\":{\"a\":\"ok\",\"b\":\"no \\\"x\\\\y\\\"\\u000a\"}}\n"
        );
        assert_eq!(Health { checks: vec![("a", None)] }.to_json(), "{\"status\":\"ok\",\"checks\":{\"a\":\"ok\"}}\n");
    }
}
