//! The dashboard: a page that lies in this program, and asks nobody else for anything.
//!
//! Its files are in `coordinator/web`; they are served as they are there, with no build in between.

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::engine::Engine;
use super::error::ApiError;
use super::pages;
use super::state::Api;

/// What the page may do: run and show what comes from this server, and speak with it. Text never becomes markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const PICTURE: &str = "image/svg+xml";

/// The page itself.
const PAGE: &str = include_str!("../../web/index.html");

/// What the page consists of: name, content type, content.
const ASSETS: [(&str, &str, &str); 14] = [
    ("app.js", SCRIPT, include_str!("../../web/app.js")),
    ("charts.js", SCRIPT, include_str!("../../web/charts.js")),
    ("chat.js", SCRIPT, include_str!("../../web/chat.js")),
    ("comparisons.js", SCRIPT, include_str!("../../web/comparisons.js")),
    ("dom.js", SCRIPT, include_str!("../../web/dom.js")),
    ("format.js", SCRIPT, include_str!("../../web/format.js")),
    ("icon.svg", PICTURE, include_str!("../../web/icon.svg")),
    ("lists.js", SCRIPT, include_str!("../../web/lists.js")),
    ("server.js", SCRIPT, include_str!("../../web/server.js")),
    ("shards.js", SCRIPT, include_str!("../../web/shards.js")),
    ("style.css", CSS, include_str!("../../web/style.css")),
    ("summary.js", SCRIPT, include_str!("../../web/summary.js")),
    ("timeline.js", SCRIPT, include_str!("../../web/timeline.js")),
    ("topology.js", SCRIPT, include_str!("../../web/topology.js")),
];

/// `GET /`: the dashboard for browsers, a list of what there is for everybody else.
pub(crate) async fn index<E: Engine>(State(api): State<Api<E>>, request: Request) -> Response {
    let wants_page = request.headers().get_all(header::ACCEPT).iter().any(|accept| {
        let kinds = accept.to_str().unwrap_or_default().split(',');
        kinds.map(|kind| kind.split(';').next().unwrap_or_default().trim()).any(|kind| kind == "text/html")
    });
    let mut response = if wants_page {
        file(HTML, PAGE, request.headers())
    } else {
        pages::index(State(api)).await.into_response()
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    response
}

/// `GET /assets/{name}`: a part of the dashboard.
pub(crate) async fn asset(Path(name): Path<String>, request: Request) -> Response {
    match ASSETS.iter().find(|(known, _, _)| *known == name) {
        Some((_, kind, content)) => file(kind, content, request.headers()),
        None => ApiError::unknown_route(request.method().as_str(), request.uri().path()).into_response(),
    }
}

/// A file, or the news that the browser has it already: it asks each time, since the next version of the program has
/// others under the same names.
fn file(kind: &'static str, content: &'static str, asked: &HeaderMap) -> Response {
    let hash = Sha256::digest(content);
    let tag = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>();
    let tag = format!("\"{tag}\"");
    let known = asked.get_all(header::IF_NONE_MATCH).iter().any(|tags| {
        tags.to_str().unwrap_or_default().split(',').any(|known| known.trim().trim_start_matches("W/") == tag)
    });
    let mut headers: HeaderMap = [
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ]
    .map(|(name, value)| (name, HeaderValue::from_static(value)))
    .into_iter()
    .collect();
    // A tag of hexadecimal digits is a valid header.
    headers.extend(HeaderValue::try_from(tag).ok().map(|tag| (header::ETAG, tag)));
    if known {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    (headers, content).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_and_its_parts_name_only_what_there_is() {
        let named = |text: &'static str, before: &'static str| {
            text.split(before).skip(1).map(|rest| rest.split('"').next().unwrap_or_default())
        };
        let mut found = 0;
        let page = named(PAGE, "\"/assets/");
        let parts = ASSETS.iter().flat_map(|(_, _, content)| named(content, "from \"./"));
        for name in page.chain(parts) {
            assert!(ASSETS.iter().any(|(known, _, _)| *known == name), "there is no {name}");
            found += 1;
        }
        assert!(found >= ASSETS.len(), "only {found} are named");
    }

    #[test]
    fn nothing_is_asked_of_others_and_no_text_becomes_markup() {
        let texts = ASSETS.iter().map(|(_, _, content)| *content).chain([PAGE]);
        for text in texts {
            // The names of XML's kinds of elements look like addresses.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            for banned in [
                "http:",
                "https:",
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "eval(",
                " style=\"",
                " onclick",
            ] {
                assert!(!text.contains(banned), "`{banned}` in the page");
            }
        }
    }

    #[test]
    fn a_browser_that_has_a_file_is_told_so() {
        let first = file(CSS, "a{}", &HeaderMap::new());
        assert_eq!(first.status(), StatusCode::OK);
        let tag = first.headers()[header::ETAG].clone();
        let again: HeaderMap = [(header::IF_NONE_MATCH, tag)].into_iter().collect();
        assert_eq!(file(CSS, "a{}", &again).status(), StatusCode::NOT_MODIFIED);
        assert_eq!(file(CSS, "b{}", &again).status(), StatusCode::OK);
    }
}
