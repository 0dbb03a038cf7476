//! Files and lists as large gateways have them: the work grows as they do, not as their square.
//!
//! The bounds on time are a hundred times what it takes and a tenth of what one walk of a list for
//! each of its names takes.

use std::time::{Duration, Instant};

use super::*;

/// Far more than is needed, far less than a quadratic walk takes.
const PATIENCE: Duration = Duration::from_secs(30);

#[track_caller]
fn soon<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    let took = begun.elapsed();
    assert!(took < PATIENCE, "{what} took {took:?}");
    done
}

#[test]
fn four_hundred_upstreams_may_list_five_hundred_models_each() {
    let mut text = String::from("[[listener]]\nname=\"l\"\nbind=\"127.0.0.1:0\"\nauth=\"none\"\n");
    for upstream in 0..400 {
        // Half of what each lists is listed by all, so that there are many sets and large ones.
        let of_all = (0..250).map(|n| format!("\"all-{n}\""));
        let own = (0..250).map(|n| format!("\"own-{}-{n}\"", upstream / 4));
        let models: Vec<String> = of_all.chain(own).collect();
        text.push_str(&format!(
            "[[upstream]]\nname=\"u{upstream}\"\nurl=\"http://10.0.0.1:{}\"\nmodels=[{}]\n",
            9000 + upstream,
            models.join(",")
        ));
    }
    text.push_str("[models.all-7]\nupstream=\"u0\"\n[models.other]\nupstream=\"u1\"\n");
    text.push_str("aliases=[\"own-3-1\"]\n");
    let loaded = soon("the check", || good(&text));
    let config = loaded.config;
    assert_eq!(config.models.len(), 250 + 100 * 250 + 2 - 2);
    let group = |name: &str| {
        config.group(config.models.iter().find(|m| m.name == name).unwrap().group).members.len()
    };
    assert_eq!((group("all-1"), group("own-5-9"), group("all-7")), (400, 4, 1));
    assert_eq!(config.groups.len(), 400 + 100 + 1);
    // "all-7" is shadowed for everyone but u0, "own-3-1" for the four that list it.
    assert_eq!(loaded.report.warnings.len(), 399 + 4);
    soon("the print", || config.to_toml());
}

#[test]
fn sixty_thousand_models_may_be_reported() {
    let text = "[[upstream]]\nname=\"a\"\nurl=\"http://h:1\"\n\
                [[upstream]]\nname=\"b\"\nurl=\"http://h:2\"\n";
    let config = good(&with(text)).config;
    let ids: Vec<UpstreamId> = ["a", "b"]
        .map(|name| config.upstreams.iter().position(|u| u.name == name).unwrap())
        .map(|at| UpstreamId(at as u16))
        .to_vec();
    let names = |n: u32| (0..n).map(|n| format!("model-{n}")).collect::<Vec<_>>();
    let found = [(ids[0], names(60_000)), (ids[1], names(30_000))];
    let after = soon("the list", || config.with_discovered(&found, &[]));
    assert_eq!(after.models.len(), config.models.len() + 60_000);
    let members = |name: &str| {
        let model = after.models.iter().find(|m| m.name == name).unwrap();
        after.group(model.group).members.len()
    };
    assert_eq!((members("model-29999"), members("model-30000")), (2, 1));
    assert_eq!(after.groups.len(), config.groups.len() + 1);
}

#[test]
fn a_list_that_is_shadowed_whole_is_told_of_twenty_times_and_counted() {
    let names: Vec<String> = (0..2_000).map(|n| format!("\"m{n}\"")).collect();
    let list = format!("models=[{}]\n", names.join(","));
    let rows: String =
        names.iter().map(|name| format!("[models.{name}]\nupstream=\"other\"\n")).collect();
    let text = format!(
        "[[upstream]]\nname=\"other\"\nurl=\"http://h:1\"\nmodels=[]\n\
         [[upstream]]\nname=\"lists\"\nurl=\"http://h:2\"\n{list}{rows}"
    );
    let warnings = soon("the check", || good(&with(&text)).report.warnings);
    let shadowed: Vec<_> = warnings.iter().filter(|w| w.message.contains("shadowed")).collect();
    assert_eq!(shadowed.len(), 21);
    assert_eq!(shadowed[20].message, "1,980 more of its models are shadowed");
}

#[test]
fn two_thousand_unknown_names_are_told_of_soon() {
    let groups: String = (0..2_000)
        .map(|n| format!("[[group]]\nname=\"group-number-{n}\"\nmembers=[\"gpu0\"]\n"))
        .collect();
    let rows: String =
        (0..2_000).map(|n| format!("[models.m{n}]\ngroup=\"gruop-nmuber-{n}\"\n")).collect();
    let text = with(&format!("{groups}{rows}"));
    let report = soon("the check", || load("f.toml", &text, &Outside::NOTHING).unwrap_err());
    assert_eq!(report.errors.len(), 2_000);
    assert!(report.errors[0].message.contains("did you mean"), "{}", report.errors[0].message);
}
