//! A real browser without a window, driven over the WebDriver protocol: Chromium by its own driver.

use std::collections::{HashMap, HashSet};
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::Client;
use crate::process::Process;

/// How long the driver may take to say where it listens.
const DRIVER_START: Duration = Duration::from_secs(20);
/// How often something is looked for.
const POLL: Duration = Duration::from_millis(50);
/// The name of a reference to an element in the protocol.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// The two programs, by the names that Debian gives them and others.
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
const DRIVER: &str = "chromedriver";

/// One browser with one page.
#[derive(Debug)]
pub struct Browser {
    driver: Process,
    client: Client,
    session: String,
    // Where the browser keeps its profile.
    _home: TempDir,
}

/// What of the browser is missing on this machine, with the way to get it; `None` where it can be driven.
pub fn missing() -> Option<String> {
    let browser = BROWSERS.iter().find_map(|name| find(name));
    let lacks = match (browser, find(DRIVER)) {
        (Some(_), Some(_)) => return None,
        (None, Some(_)) => BROWSERS[0].to_owned(),
        (Some(_), None) => DRIVER.to_owned(),
        (None, None) => format!("{} and {DRIVER}", BROWSERS[0]),
    };
    Some(format!("there is no {lacks} in the PATH (Debian: apt-get install chromium chromium-driver)"))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

impl Browser {
    /// Starts a browser.
    pub async fn start() -> Browser {
        let home = tempfile::tempdir().expect("the temporary folder is writable");
        let mut command = Command::new(DRIVER);
        command.args(["--port=0"]).env("HOME", home.path());
        let mut driver = Process::start(&mut command);
        let port = |line: &str| {
            line.strip_prefix("ChromeDriver was started successfully on port ")?
                .trim_end_matches('.')
                .parse::<u16>()
                .ok()
        };
        let port = driver.wait_for("port", DRIVER_START, port);
        let client = Client::new(&format!("http://127.0.0.1:{port}"));
        let binary = BROWSERS.iter().find_map(|name| find(name)).expect("somebody has asked what is missing");
        let arguments = json!([
            "--headless=new",
            // Root may not use the sandbox, and containers have a small /dev/shm.
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--hide-scrollbars",
            // So that the browser ends with its driver, however that ends.
            "--remote-debugging-pipe",
            format!("--user-data-dir={}", home.path().join("profile").display()),
        ]);
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:loggingPrefs": { "browser": "ALL" },
            "goog:chromeOptions": { "binary": binary, "args": arguments },
        } } });
        let session = client.post("/session", &wanted).await.ok();
        let session = session["value"]["sessionId"].as_str().expect("a session has an id").to_owned();
        Browser { driver, client, session, _home: home }
    }

    /// Ends the browser and its driver.
    pub async fn quit(mut self) {
        self.client.get("/shutdown").await.ok();
        self.driver.wait(Duration::from_secs(10));
    }

    async fn command(&self, path: &str, body: Value) -> Value {
        let answer = self.client.post(&format!("/session/{}{path}", self.session), &body).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body["value"]["message"]);
        answer.body["value"].clone()
    }

    /// A command of the browser's own protocol.
    async fn own(&self, command: &str, parameters: Value) -> Value {
        self.command("/goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await
    }

    /// Opens a page, and waits until it is there.
    pub async fn open(&self, url: &str) {
        self.command("/url", json!({ "url": url })).await;
    }

    /// Makes the page so large, in pixels, and tells it that its user likes it `light` or `dark`.
    pub async fn show_as(&self, width: u32, height: u32, scheme: &str) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.own("Emulation.setDeviceMetricsOverride", size).await;
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.own("Emulation.setEmulatedMedia", json!({ "features": [feature] })).await;
    }

    /// What a function's body gives in the page; a promise is waited for.
    pub async fn eval(&self, body: &str) -> Value {
        self.command("/execute/sync", json!({ "script": body, "args": [] })).await
    }

    /// The text of the first element that a selector finds; `None` where there is none, or it is not shown.
    pub async fn text(&self, selector: &str) -> Option<String> {
        let selector = json!(selector);
        let found = self.eval(&format!("return document.querySelector({selector})?.innerText")).await;
        found.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
    }

    /// Waits until a function's body gives something other than `null`, `false`, zero or nothing in the page.
    pub async fn wait_for(&self, what: &str, limit: Duration, body: &str) -> Value {
        let deadline = Instant::now() + limit;
        loop {
            let found = self.eval(body).await;
            if !matches!(found, Value::Null | Value::Bool(false)) && found != json!(0) && found != json!("") {
                return found;
            }
            if Instant::now() >= deadline {
                let page = self.text("body").await.unwrap_or_default();
                panic!("not within {limit:?}: {what}; the page shows:\n{page}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn element(&self, selector: &str) -> String {
        let found = self.command("/element", json!({ "using": "css selector", "value": selector })).await;
        found[ELEMENT].as_str().expect("an element is found by a reference").to_owned()
    }

    /// Clicks on an element.
    pub async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.command(&format!("/element/{element}/click"), json!({})).await;
    }

    /// Types into an element, as on a keyboard; a line's end is the Enter key.
    pub async fn type_into(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.command(&format!("/element/{element}/value"), json!({ "text": text.replace('\n', "\u{e007}") }))
            .await;
    }

    /// A picture of what is to be seen, as PNG of few colours, written to a file.
    pub async fn picture(&self, file: &Path) {
        let picture = self.own("Page.captureScreenshot", json!({ "format": "png" })).await;
        let picture = STANDARD.decode(picture["data"].as_str().expect("a picture is text"));
        let picture = with_palette(&picture.expect("a picture is written in base64"));
        std::fs::write(file, picture.expect("the browser makes pictures that can be read"))
            .unwrap_or_else(|error| panic!("failed to write {}: {error}", file.display()));
    }

    /// For how long the page's thread has computed since the first question, in seconds; what it waited for other programs
    /// does not count.
    pub async fn thread_seconds(&self) -> f64 {
        self.own("Performance.enable", json!({ "timeDomain": "threadTicks" })).await;
        let all = self.own("Performance.getMetrics", json!({})).await;
        let metrics = all["metrics"].as_array().cloned().unwrap_or_default();
        let task = metrics.iter().find(|metric| metric["name"] == "TaskDuration");
        task.and_then(|metric| metric["value"].as_f64()).expect("the browser counts its tasks' time")
    }

    /// Errors that the page has made on its console since the last question.
    pub async fn errors(&self) -> Vec<String> {
        let entries = self.command("/se/log", json!({ "type": "browser" })).await;
        let entries = entries.as_array().cloned().unwrap_or_default();
        let bad =
            entries.iter().filter(|entry| matches!(entry["level"].as_str(), Some("SEVERE" | "WARNING")));
        bad.map(|entry| entry["message"].to_string()).collect()
    }
}

/// Colours of a picture: what a palette of one byte holds.
const COLOURS: usize = 256;

/// The same picture with its most frequent colours alone, each other one as the nearest of these: a third of the size,
/// since most of a page's colours are the soft edges of letters.
fn with_palette(picture: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut reader = png::Decoder::new(Cursor::new(picture)).read_info()?;
    let mut pixels = vec![0; reader.output_buffer_size().context("the picture is too large")?];
    let info = reader.next_frame(&mut pixels)?;
    let channels = info.color_type.samples();
    anyhow::ensure!(
        info.bit_depth == png::BitDepth::Eight && channels >= 3,
        "it is not one of bytes per colour"
    );
    let colours = pixels.chunks_exact(channels).map(|pixel| [pixel[0], pixel[1], pixel[2]]);
    let mut counts: HashMap<[u8; 3], usize> = HashMap::new();
    for colour in colours.clone() {
        *counts.entry(colour).or_default() += 1;
    }
    let mut palette: Vec<[u8; 3]> = counts.keys().copied().collect();
    palette.sort_unstable_by_key(|colour| (std::cmp::Reverse(counts[colour]), *colour));
    // One of each sixteenth, so that rare colours have a place beside many shades of frequent ones.
    let mut taken = HashSet::new();
    palette.retain(|colour| taken.insert(colour.map(|channel| channel >> 4)));
    palette.truncate(COLOURS);
    let distance = |left: &[u8; 3], right: &[u8; 3]| -> u32 {
        left.iter().zip(right).map(|(left, right)| u32::from(left.abs_diff(*right)).pow(2)).sum()
    };
    let nearest = |colour: &[u8; 3]| {
        let places = 0..=u8::MAX;
        places.zip(&palette).min_by_key(|(_, known)| distance(known, colour)).map_or(0, |(place, _)| place)
    };
    let places: HashMap<[u8; 3], u8> = counts.keys().map(|colour| (*colour, nearest(colour))).collect();
    let indices: Vec<u8> = colours.map(|colour| places[&colour]).collect();
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, info.width, info.height);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette(palette.concat());
    encoder.set_compression(png::Compression::High);
    // Neighbouring numbers of a palette are no neighbouring colours.
    encoder.set_filter(png::Filter::NoFilter);
    encoder.write_header()?.write_image_data(&indices)?;
    Ok(file)
}
