//! The head of a request.
//!
//! ```text
//! GET /path?query HTTP/1.1 CR LF, header lines, an empty line
//! ```

/// A longer head is refused.
pub const MAX_REQUEST_BYTES: usize = 8 * 1024;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub is_head: bool,
    /// Without the query.
    pub path: String,
    /// HTTP/1.1: the answer may come in chunks.
    pub takes_chunks: bool,
    /// The first `Host`; what is no text of it is no name either.
    pub host: Option<String>,
}

/// Why a head is no request that is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// More of it is to come.
    #[error("the request is not complete")]
    Incomplete,
    #[error("this is no HTTP request")]
    Malformed,
    #[error("the request is too large")]
    TooLarge,
    #[error("only GET and HEAD are served")]
    Method,
    #[error("only HTTP/1.0 and HTTP/1.1 are served")]
    Version,
}

impl RequestError {
    pub fn status(self) -> &'static str {
        match self {
            RequestError::Incomplete | RequestError::Malformed => "400 Bad Request",
            RequestError::TooLarge => "431 Request Header Fields Too Large",
            RequestError::Method => "405 Method Not Allowed",
            RequestError::Version => "505 HTTP Version Not Supported",
        }
    }
}

impl Request {
    /// Reads a head; of its header lines only `Host` matters here.
    ///
    /// # Errors
    /// It is not complete yet, or not to be served; the latter is told as early as it shows.
    pub fn parse(head: &[u8]) -> Result<Request, RequestError> {
        let end = head.iter().position(|byte| *byte == b'\n');
        let line = head.get(..end.unwrap_or(head.len())).unwrap_or_default();
        let is_text = line.iter().all(|byte| (b' '..=b'~').contains(byte) || *byte == b'\r');
        if !is_text || head.first().is_some_and(|byte| !byte.is_ascii_uppercase()) {
            return Err(RequestError::Malformed);
        }
        if end.is_none() {
            return Err(RequestError::Incomplete);
        }
        let line = std::str::from_utf8(line).map_err(|_| RequestError::Malformed)?;
        let mut words = line.trim_end_matches('\r').split(' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(RequestError::Malformed);
        };
        let takes_chunks = match version {
            "HTTP/1.1" => true,
            "HTTP/1.0" => false,
            other if other.starts_with("HTTP/") => return Err(RequestError::Version),
            _ => return Err(RequestError::Malformed),
        };
        let is_head = match method {
            "GET" => false,
            "HEAD" => true,
            _ => return Err(RequestError::Method),
        };
        if !target.starts_with('/') {
            return Err(RequestError::Malformed);
        }
        let is_complete = head.windows(4).any(|end| end == b"\r\n\r\n") || head.windows(2).any(|end| end == b"\n\n");
        if !is_complete {
            return Err(RequestError::Incomplete);
        }
        let path = target.split(['?', '#']).next().unwrap_or_default().to_owned();
        let lines = head.split(|byte| *byte == b'\n').skip(1).map(String::from_utf8_lossy);
        let mut hosts = lines.filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("host").then(|| value.trim().to_owned())
        });
        let host = hosts.next();
        Ok(Request { is_head, path, takes_chunks, host })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        let get =
            |path: &str, takes_chunks| Ok(Request { is_head: false, path: path.to_owned(), takes_chunks, host: None });
        let named = |request: Result<Request, RequestError>| request.map(|r| Request { host: Some("a:1".into()), ..r });
        let cases: [(&str, Result<Request, RequestError>); 14] = [
            ("GET /metrics HTTP/1.1\r\nx: y\r\nhost:  a:1 \r\n\r\n", named(get("/metrics", true))),
            ("GET /metrics?a=b HTTP/1.0\r\n\r\n", get("/metrics", false)),
            ("GET / HTTP/1.1\n\n", get("/", true)),
            ("", Err(RequestError::Incomplete)),
            ("GET /metr", Err(RequestError::Incomplete)),
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n", Err(RequestError::Incomplete)),
            ("POST / HTTP/1.1\r\nContent-Length: 1000000\r\n", Err(RequestError::Method)),
            ("GET / HTTP/2.0\r\n", Err(RequestError::Version)),
            ("GET  / HTTP/1.1\r\n\r\n", Err(RequestError::Malformed)),
            ("GET http://a/ HTTP/1.1\r\n\r\n", Err(RequestError::Malformed)),
            ("GET / SIP/2.0\r\n\r\n", Err(RequestError::Malformed)),
            ("\x16\x03\x01", Err(RequestError::Malformed)),
            ("\0\0\0\x12\0\x12", Err(RequestError::Malformed)),
            ("GET /\u{e4} HTTP/1.1\r\n\r\n", Err(RequestError::Malformed)),
        ];
        let nameless = Request::parse(b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n").unwrap().host;
        assert_eq!(nameless.as_deref(), Some("\u{fffd}"));
        for (head, expected) in cases {
            assert_eq!(Request::parse(head.as_bytes()), expected, "{head:?}");
        }
    }
}
