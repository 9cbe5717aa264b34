//! The page of a real drill in a real browser: on a phone, on a desk, by light, by dark, on
//! paper.

use std::path::{Path, PathBuf};
use std::time::Duration;

use seawall_tests::cli::drill;
use seawall_tests::postgres::Cluster;
use seawall_tests::process::{Output, Run};
use seawall_tests::readable::{DESK, PHONE, fits, has_contrast, loads_nothing};
use seawall_tests::site::{PATIENCE, Site};
use seawall_tests::version::PostgresVersion;
use seawall_tests::{Browser, pgbench, scratch};
use serde_json::Value;

const SETTINGS: &str = "\
[objectives]
rpo = '5min'
rto = '30s'
[[drill.check]]
name = 'every order is there'
sql = 'SELECT count(*) FROM orders'
equals = '6000'
[[drill.check]]
name = 'the newest order'
sql = 'SELECT max(placed) FROM orders'
not_older_than = '1h'
";

/// A cluster with a backup and some work after it.
fn site() -> Site {
    let builder = Cluster::builder(PostgresVersion::find(15));
    let site = Site::configured(builder, |file| file.extra(SETTINGS)).start();
    site.cluster.sql(
        "CREATE TABLE orders (id int PRIMARY KEY, placed timestamptz DEFAULT clock_timestamp(), what text)",
    );
    work(&site, 1, 5000);
    site.backup();
    work(&site, 5001, 6000);
    site
}

fn work(site: &Site, from: u32, until: u32) {
    site.cluster.sql(&format!(
        "INSERT INTO orders SELECT x, clock_timestamp(), md5(x::text) FROM generate_series({from}, {until}) x"
    ));
    site.cluster.archive_all(PATIENCE);
}

/// Drills and returns what it printed, and the page that it wrote.
fn drilled(site: &Site, name: &str) -> (Output, PathBuf) {
    let reports = site.scratch.directory(name);
    let output = drill(&site.config)
        .arg("--scratch")
        .arg(site.scratch.path())
        .arg("--report")
        .arg(&reports)
        .args(["--trigger", "the test of its page", "--json"])
        .run();
    (output, reports.join("report.html"))
}

#[test]
fn the_page_of_a_drill_is_read_on_a_phone_on_a_desk_by_light_by_dark_and_on_paper() {
    let site = site();
    let (output, page) = drilled(&site, "reports");
    let report = output.success().json();
    let browser = Browser::start(&site.scratch);
    browser.open(&page);
    for screen in [PHONE, DESK] {
        browser.screen(screen.0, screen.1);
        for scheme in ["light", "dark"] {
            browser.prefer(scheme);
            shows_its_verdict(&browser, "Drill passed");
            fits(&browser, &format!("{screen:?} {scheme}"));
            has_room(&browser, &format!("{screen:?} {scheme}"));
            has_contrast(&browser, scheme);
            let png = browser.screenshot();
            assert!(
                png.starts_with(b"\x89PNG") && png.len() > 10_000,
                "{screen:?} {scheme}"
            );
        }
    }
    let grounds: Vec<Value> = ["light", "dark"]
        .map(|scheme| {
            browser.prefer(scheme);
            browser.run("return getComputedStyle(document.body).backgroundColor")
        })
        .into();
    assert_ne!(grounds[0], grounds[1], "there is one scheme for both");
    loads_nothing(&browser);
    holds_the_report(&browser, &report);
    prints(&browser, &site, &report);
}

#[test]
fn a_failed_drill_says_so_at_the_top_and_the_trend_marks_it() {
    let site = site();
    drilled(&site, "first").0.success();
    work(&site, 6001, 6010);
    let (output, page) = drilled(&site, "second");
    let report = output.exits_with(3).json();
    assert_eq!(report["trend"].as_array().unwrap().len(), 1);
    let browser = Browser::start(&site.scratch);
    browser.open(&page);
    browser.screen(PHONE.0, PHONE.1);
    for scheme in ["light", "dark"] {
        browser.prefer(scheme);
        shows_its_verdict(&browser, "Drill failed");
        fits(&browser, scheme);
        has_room(&browser, scheme);
        has_contrast(&browser, scheme);
    }
    let reasons = browser.run("return document.querySelector('header .reasons').innerText");
    let words = "every order is there failed: 6010, expected 6000";
    assert!(reasons.as_str().unwrap().contains(words), "{reasons}");
    let marks = "return [...document.querySelectorAll('#trend svg')].map(chart => [
        chart.querySelectorAll('rect.drill').length, chart.querySelectorAll('text.failure').length])";
    assert_eq!(browser.run(marks).to_string(), "[[2,1],[2,1]]");
    let first = browser.run("return document.querySelector('#checks li').innerText");
    assert!(first.as_str().unwrap().contains("FAILED"), "{first}");
}

/// Writes docs/drill-report-{phone,desk}.png into `$SEAWALL_TEST_SCREENSHOTS`:
/// see docs/drill-report.md.
#[test]
#[ignore = "long: a dozen drills, for the pictures in docs/"]
fn pictures_of_the_page_are_small_enough_for_the_documents() {
    let site = site();
    pgbench::init(&site.cluster, 20);
    site.cluster.archive_all(PATIENCE);
    site.backup();
    let mut page = PathBuf::new();
    for at in 0..12 {
        // One drill finds too many rows; then they are deleted, and archived.
        match at {
            6 => work(&site, 6001, 6010),
            7 => {
                site.cluster.sql("DELETE FROM orders WHERE id > 6000");
            }
            _ => drop(pgbench::run(&site.cluster, 2, Duration::from_secs(3))),
        }
        site.cluster.archive_all(PATIENCE);
        let (output, written) = drilled(&site, &format!("reports-{at}"));
        output.exits_with(if at == 6 { 3 } else { 0 });
        page = written;
    }
    let browser = Browser::start(&site.scratch);
    browser.open(&page);
    for (name, width, height, scheme) in
        [("desk", 1100, 1640, "light"), ("phone", 390, 2080, "dark")]
    {
        browser.screen(width, height);
        browser.prefer(scheme);
        let png = browser.screenshot();
        assert!(png.len() < 300 << 10, "{name}: {} bytes", png.len());
        if let Some(directory) = std::env::var_os("SEAWALL_TEST_SCREENSHOTS") {
            let path = Path::new(&directory).join(format!("drill-report-{name}.png"));
            std::fs::write(path, png).unwrap();
        }
    }
}

fn shows_its_verdict(browser: &Browser, words: &str) {
    let shown = browser.run(
        "scrollTo(0, 0);
         const verdict = document.querySelector('h1'), box = verdict.getBoundingClientRect();
         const there = document.elementFromPoint(box.left + 20, box.top + box.height / 2);
         return verdict.contains(there) && box.bottom < innerHeight / 3 ? verdict.innerText : there.outerHTML",
    );
    assert!(shown.as_str().unwrap().contains(words), "{shown}");
}

/// Names and figures of the phases do not meet.
fn has_room(browser: &Browser, what: &str) {
    let met = browser.run(
        "const rows = {};
         for (const text of document.querySelectorAll('.timeline text.name, .timeline text.value'))
            (rows[text.getAttribute('y')] ??= []).push(text.getBoundingClientRect());
         return Object.values(rows).filter(([name, value]) => name.right > value.left).length",
    );
    assert_eq!(met, 0, "{what}: names and figures of phases meet");
}

fn holds_the_report(browser: &Browser, report: &Value) {
    let count = |selector: &str| {
        browser.run(&format!(
            "return document.querySelectorAll(\"{selector}\").length"
        ))
    };
    let length = |value: &Value| value.as_array().unwrap().len();
    assert_eq!(
        count("#time svg rect.phase"),
        length(&report["rto"]["phases"])
    );
    assert_eq!(count("#checks .found > li"), length(&report["checks"]));
    assert_eq!(count("#runbook .found > li"), length(&report["evidence"]));
    // Nothing stands behind the runbook, and its commands are those of the report.
    let last = browser.run(
        "const sections = document.querySelectorAll('section');
         const last = sections[sections.length - 1];
         return [last.id, !!last.nextElementSibling, !!document.querySelector('main').nextElementSibling]",
    );
    assert_eq!(last.to_string(), "[\"runbook\",false,false]");
    let commands = browser
        .run("return [...document.querySelectorAll('#runbook pre')].map(pre => pre.textContent)");
    for (step, shown) in report["evidence"]
        .as_array()
        .unwrap()
        .iter()
        .zip(commands.as_array().unwrap())
    {
        assert_eq!(&step["command"], shown);
    }
    // Headings lead a reader who does not see: one of the first rank, and no rank is left out.
    let ranks = browser.run(
        "return [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(heading => +heading.tagName[1])",
    );
    let ranks: Vec<u64> = ranks
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_u64)
        .collect();
    assert!(
        ranks[0] == 1 && ranks[1..].iter().all(|rank| *rank == 2),
        "{ranks:?}"
    );
    let named = "return [...document.querySelectorAll('svg:not([aria-hidden])')].every(svg =>
        svg.getAttribute('role') === 'img' && svg.querySelector(':scope > title') && svg.querySelector(':scope > desc'))";
    assert_eq!(browser.run(named), true, "a picture has no words");
}

/// On paper everything is there, also what is folded on the screen.
fn prints(browser: &Browser, site: &Site, report: &Value) {
    let pdf = browser.print();
    assert!(pdf.starts_with(b"%PDF"));
    let path = site.scratch.file("page.pdf", pdf);
    scratch::give_to_owner(&path);
    let text = Run::new("pdftotext")
        .arg("-layout")
        .arg(&path)
        .arg("-")
        .run()
        .success()
        .stdout;
    let dense = |text: &str| text.split_whitespace().collect::<String>();
    let printed = dense(&text);
    let mut wanted = vec![
        "Drill passed".to_owned(),
        "Recovery time, by phases".to_owned(),
        // Folded on the screen.
        "Phases may overlap".to_owned(),
        "database system is ready to accept connections".to_owned(),
        "Runbook: every command, in order".to_owned(),
    ];
    let evidence = report["evidence"].as_array().unwrap();
    wanted.extend(
        evidence
            .iter()
            .map(|step| step["command"].as_str().unwrap().to_owned()),
    );
    for words in wanted {
        assert!(
            printed.contains(&dense(&words)),
            "{words} is not in\n{text}"
        );
    }
}
