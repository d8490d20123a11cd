//! What a comparison is written as, in a real browser: the page on a screen, on a phone and on paper, the picture, and the
//! history on the dashboard.

use std::path::{Path, PathBuf};

use brigade_coordinator::compare::history::History;
use brigade_coordinator::compare::{Comparison, report};
use brigade_tests::browser::Browser;
use brigade_tests::comparisons::comparison;
use brigade_tests::pages::{BARRIERS, PHONE, THERE, Trials, check};
use brigade_tests::serve::Served;
use brigade_tests::setup;
use libtest_mimic::Failed;
use serde_json::{Value, json};

const SCREEN: (u32, u32) = (1280, 2600);
/// A name that tries to be more than a name.
const EVIL: &str =
    "<script>document.title='evil'</script><img src=x onerror=\"document.title='evil'\">&\"'</style>";

fn main() {
    Trials::of("reports")
        .plain("a_coordinator_lists_the_comparisons_of_its_state_directory", listed)
        .seen("the_page_is_read_on_screens_and_phones_and_no_name_becomes_markup", page)
        .seen("the_picture_is_drawn", picture)
        .seen("the_dashboard_shows_comparisons", dashboard)
        .run()
}

fn picture_file(name: &str) -> PathBuf {
    setup::target_folder().join(format!("report-{name}.png"))
}

/// Every name in it is [`EVIL`].
fn hostile() -> Comparison {
    let mut comparison = comparison(EVIL);
    comparison.verdict.text.push_str(EVIL);
    comparison.left_out.push(EVIL.to_owned());
    for side in &mut comparison.sides {
        side.name.push_str(EVIL);
        side.resident.push((EVIL.to_owned(), 1));
        side.shares
            .iter_mut()
            .flat_map(|load| &mut load.stages)
            .for_each(|stage| stage.worker.push_str(EVIL));
    }
    comparison
}

fn write(folder: &Path, name: &str, text: &str) -> Result<String, Failed> {
    let file = folder.join(name);
    std::fs::write(&file, text)?;
    Ok(format!("file://{}", file.display()))
}

async fn page() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let browser = Browser::start().await;
    for (name, comparison) in [("plain", comparison("SmolLM2-135M-Instruct.Q4_1")), ("hostile", hostile())] {
        let url = write(folder.path(), &format!("{name}.html"), &report::html(&comparison))?;
        browser.open(&url).await;
        for ((width, height), scheme) in
            [(SCREEN, "light"), (SCREEN, "dark"), (PHONE, "light"), (PHONE, "dark")]
        {
            browser.show_as(width, height, scheme).await;
            let wide = browser.eval("return document.documentElement.scrollWidth").await;
            check(wide == json!(width), format!("{name}: {width} pixels are {wide} wide"))?;
            let barriers = browser.eval(BARRIERS).await;
            check(barriers == json!([]), format!("{name}, {scheme}: {barriers:#}"))?;
            browser.picture(&picture_file(&format!("page-{name}-{width}-{scheme}"))).await;
        }
        let smallest = "return Math.min(...[...document.querySelectorAll('svg text')].filter((text) => text.checkVisibility())\
                        .map((text) => text.getBoundingClientRect().height))";
        let smallest = browser.eval(smallest).await.as_f64().unwrap_or_default();
        check(smallest > 9.0, format!("{name}: on a phone a chart's text is {smallest} pixels high"))?;
        let seen = "return [document.title === 'evil', document.scripts.length, document.images.length]";
        let seen = browser.eval(seen).await;
        check(seen == json!([false, 0, 0]), format!("{name}: {seen}"))?;
        let errors = browser.errors().await;
        check(errors.is_empty(), format!("{name}: the page complains: {errors:#?}"))?;
    }
    browser.quit().await;
    Ok(())
}

async fn picture() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let browser = Browser::start().await;
    for (name, comparison) in [("plain", comparison("SmolLM2-135M-Instruct.Q4_1")), ("hostile", hostile())] {
        let url = write(folder.path(), &format!("{name}.svg"), &report::svg(&comparison))?;
        browser.open(&url).await;
        for scheme in ["light", "dark"] {
            browser.show_as(960, 860, scheme).await;
            // A file that is not well-formed shows an error in place of bars.
            let bars = browser.eval("return document.querySelectorAll('rect.cluster').length").await;
            check(bars.as_u64() > Some(7), format!("{name}: {bars} bars of the cluster"))?;
            let outside = "const view = document.documentElement.viewBox.baseVal; \
                           return [...document.querySelectorAll('text')].filter((text) => { const box = text.getBBox(), at = text.getCTM(); \
                           const own = document.documentElement.getCTM()?.a ?? 1; \
                           return (at.e / own + box.x + box.width) > view.width + 1 || at.e / own + box.x < -1; }).map((text) => text.textContent)";
            let outside = browser.eval(outside).await;
            check(outside == json!([]), format!("{name}: texts outside the picture: {outside:#}"))?;
            browser.picture(&picture_file(&format!("picture-{name}-{scheme}"))).await;
        }
        let scripts =
            browser.eval("return document.querySelectorAll('script, img, foreignObject').length").await;
        check(scripts == 0, format!("{name}: {scripts} elements that nobody wrote"))?;
    }
    browser.quit().await;
    Ok(())
}

/// Where a served coordinator of the tests keeps its state.
fn state_of(served: &Served) -> PathBuf {
    served.home.path().join("state/brigade")
}

async fn listed() -> Result<(), Failed> {
    let mut served = Served::start(&[]);
    let client = served.early_client();
    check(client.get("/api/comparisons").await.ok() == json!([]), "nothing has been compared")?;
    let mut history = History::open(&state_of(&served))?;
    let first = history.add(&comparison("first"))?;
    let second = history.add(&comparison("second"))?;
    let listed = client.get("/api/comparisons").await.ok();
    let models: Vec<&Value> =
        listed.as_array().ok_or("no list")?.iter().map(|entry| &entry["model"]).collect();
    check(models == ["second", "first"], format!("{listed:#}"))?;
    check(listed[0]["sides"][1]["most_streams"]["tokens_per_s"] == 278.8, format!("{listed:#}"))?;
    let newest = client.get("/api/comparisons?limit=1").await.ok();
    check(newest.as_array().map(Vec::len) == Some(1) && newest[0]["id"] == second, format!("{newest:#}"))?;
    let whole = client.get(&format!("/api/comparisons/{first}")).await.ok();
    check(serde_json::from_value::<Comparison>(whole)? == comparison("first"), "all of it is there")?;
    let error = client.get("/api/comparisons/99").await.error(404);
    check(error["code"] == "unknown_comparison", error.to_string())?;

    std::fs::write(state_of(&served).join("comparisons.sqlite"), "no database".repeat(100))?;
    let error = client.get("/api/comparisons").await.error(500);
    check(
        error["message"].as_str().is_some_and(|text| text.contains("move the file away")),
        error.to_string(),
    )
}

async fn dashboard() -> Result<(), Failed> {
    let mut served = Served::start(&[]);
    let client = served.early_client();
    let browser = Browser::start().await;
    browser.show_as(1280, 1400, "light").await;
    browser.open(client.url()).await;
    let empty = "return document.getElementById('comparisons').hidden && document.getElementById('no-comparisons').innerText";
    let said = browser.wait_for("that nothing has been compared", THERE, empty).await;
    check(said.as_str().is_some_and(|said| said.contains("brigade compare")), said.to_string())?;

    let mut history = History::open(&state_of(&served))?;
    history.add(&comparison("SmolLM2-135M-Instruct.Q4_1"))?;
    browser.open(client.url()).await;
    let row = "return document.querySelectorAll('#comparisons tbody tr').length === 1";
    browser.wait_for("a comparison", THERE, row).await;
    browser.picture(&picture_file("dashboard")).await;
    history.add(&hostile())?;
    browser.open(client.url()).await;
    let rows = "return document.querySelectorAll('#comparisons tbody tr').length === 2 && document.getElementById('comparisons').innerText";
    let text = browser.wait_for("two comparisons", THERE, rows).await;
    let text = text.as_str().unwrap_or_default();
    for told in [
        "one box: 93.1 · 202 with 16 streams",
        "cluster: 52.0 · 279 with 16 streams",
        "Do not split for one stream",
        EVIL,
    ] {
        check(text.contains(told), format!("`{told}` is missing in\n{text}"))?;
    }
    for (width, height) in [(1280, 1400), PHONE] {
        browser.show_as(width, height, "light").await;
        browser.eval("document.getElementById('comparisons').scrollIntoView()").await;
        let wide = browser.eval("return document.documentElement.scrollWidth").await;
        check(wide == json!(width), format!("{width} pixels are {wide} wide"))?;
        let barriers = browser.eval(BARRIERS).await;
        check(barriers == json!([]), format!("{barriers:#}"))?;
        browser.picture(&picture_file(&format!("dashboard-{width}"))).await;
    }
    let errors = browser.errors().await;
    check(errors.is_empty(), format!("the page complains: {errors:#?}"))?;
    browser.quit().await;
    Ok(())
}
