use super::*;
use crate::error::Exit;

const GOOD: &str = r#"
    [cluster.main]
    data_directory = "/var/lib/postgresql/15/main"
    [[repository]]
    name = "near"
    url = "s3://acme/pg"
    [repository.options]
    aws_region = "eu-central-1"
    aws_secret_access_key = { env = "NEAR_KEY" }
    [objectives]
    rpo = "5m"
    [[drill.check]]
    sql = "select count(*) from t"
    at_least = 1
"#;

fn parse(text: &str) -> Result<Config> {
    Config::parse(text, "/etc/seawall/seawall.toml".into())
}

#[test]
fn a_configuration_reads_and_the_only_cluster_needs_no_name() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.cluster(None).unwrap().0, "main");
    assert_eq!(config.repositories(&[]).unwrap().len(), 1);
    assert_eq!(config.compression, Compression::default());
    assert!(config.cluster(Some("other")).is_err());
}

#[test]
fn an_unknown_key_is_an_error_with_a_suggestion_and_its_line() {
    let error = parse(&GOOD.replace("data_directory", "data_dir")).unwrap_err();
    assert_eq!(error.exit(), Exit::Usage);
    assert_eq!(error.advice(), Some("did you mean `data_directory`?"));
    assert!(error.to_string().contains("line 3"), "{error}");
}

#[test]
fn a_copy_is_filled_from_a_repository_that_is_pushed_to_and_is_no_push_target() {
    let copy = |name: &str, from: &str| {
        format!(
            "\n[[repository]]\nname = \"{name}\"\nurl = \"s3://{name}/pg\"\ncopy_from = \"{from}\"\n"
        )
    };
    let config =
        parse(&(GOOD.to_owned() + &copy("far", "near") + &copy("farther", "far"))).unwrap();
    let targets: Vec<_> = config.push_targets().map(|r| r.name.as_str()).collect();
    assert_eq!(targets, ["near"]);
    for wrong in [
        copy("far", "nowhere"),
        copy("far", "far"),
        copy("far", "farther") + &copy("farther", "far"),
    ] {
        let error = parse(&(GOOD.to_owned() + &wrong)).unwrap_err();
        assert_eq!(error.exit(), Exit::Usage, "{wrong}");
    }
}

#[test]
fn values_that_cannot_work_are_refused() {
    for (from, to) in [
        ("cluster.main", "cluster.\"a/b\""),
        ("cluster.main", "cluster.\"..\""),
        ("\"/var/lib", "\"var/lib"),
        ("at_least = 1", ""),
        ("at_least = 1", "at_least = 1\nat_most = 2"),
        ("[objectives]", "[compression]\nlevel = 99\n[objectives]"),
        ("[objectives]", "[backup]\njobs = 0\n[objectives]"),
    ] {
        assert!(parse(&GOOD.replace(from, to)).is_err(), "{to}");
    }
}

#[test]
fn no_secret_is_printed_when_its_line_is_wrong() {
    let text = GOOD.replace("{ env = \"NEAR_KEY\" }", "hunter2");
    assert!(!parse(&text).unwrap_err().to_string().contains("hunter2"));
}

#[test]
fn no_secret_is_printed_when_a_configuration_is() {
    let text = GOOD.replace("{ env = \"NEAR_KEY\" }", "\"hunter2\"");
    assert!(!format!("{:?}", parse(&text).unwrap()).contains("hunter2"));
}

#[test]
fn a_wrong_line_of_a_schedule_is_named_with_its_field_and_stops_only_the_daemon() {
    for (text, field, word) in [
        (
            "[schedule]\nfull = \"0 25 * * *\"",
            "schedule.full",
            "0 to 23",
        ),
        (
            "[schedule]\nexpire = \"0 0 31 2 *\"",
            "schedule.expire",
            "never",
        ),
        (
            "[schedule]\ntimezone = \"Mars\"",
            "schedule.timezone",
            "Berlin",
        ),
        (
            "[schedule]\nincremental = \"daily\"",
            "schedule.incremental",
            "fields",
        ),
        (
            "[schedule]\nfull = \"continuous\"",
            "schedule.full",
            "fields",
        ),
        (
            "[cluster.main.schedule]\ndrill = \"x\"",
            "cluster.main.schedule.drill",
            "fields",
        ),
        (
            "[heartbeat]\ninterval = \"1ms\"",
            "heartbeat.interval",
            "second",
        ),
        (
            "[daemon]\nstate_directory = \"x\"",
            "daemon.state_directory",
            "absolute",
        ),
        (
            "[daemon]\nretry_after = \"2h\"",
            "daemon.retry_after",
            "one hour at most",
        ),
    ] {
        // Archiving and restores go on.
        let config = parse(&format!("{GOOD}\n{text}\n")).unwrap();
        let error = config.check_schedules().unwrap_err();
        assert_eq!(error.exit(), Exit::Usage, "{text}");
        let said = error.to_string();
        assert!(said.contains(field) && said.contains(word), "{said}");
    }
}

#[test]
fn a_cluster_has_the_common_schedule_or_one_of_its_own_and_copies_are_continuous() {
    let text = GOOD.to_owned()
        + "[schedule]\nfull = \"0 1 * * 0\"\ncopy = \"continuous\"\ntimezone = \"Europe/Berlin\"\n\
           [cluster.own]\ndata_directory = \"/own\"\n[cluster.own.schedule]\ncopy = \"@hourly\"\n";
    let config = parse(&text).unwrap();
    config.check_schedules().unwrap();
    let of = |name: &str| config.schedule_of(&config.cluster[name]).unwrap();
    let main = of("main").full.unwrap();
    assert_eq!(
        (main.line(), main.zone_name()),
        ("0 1 * * 0", "Europe/Berlin")
    );
    assert_eq!((of("main").copy, of("own").full), (None, None));
    assert_eq!(of("own").copy.unwrap().line(), "@hourly");
}
