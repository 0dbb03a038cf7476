//! rules §13: what an operator reads on stderr, of the process itself.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::house::{LIMIT, mock, wait_until};
use super::process::{Run, address, folder};
use super::redis_store::Redis;
use super::wire::{Client, chat, post};

/// A line that can be read by a machine, by its level and its message.
fn level_and_message(line: &str) -> (String, String) {
    let line: Value = serde_json::from_str(line).unwrap_or_else(|why| panic!("{line}: {why}"));
    assert!(line["ts"].is_string(), "{line}");
    let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
    (text("level"), text("msg"))
}

#[test]
fn the_start_block_tells_what_was_obtained_and_no_secret() {
    let mock = mock();
    let config = |format: &str, socket: &str| {
        format!(
            "[process]\ncores = 1\n[log]\nformat = \"{format}\"\n\
             [[listener]]\nname = \"main\"\nbind = \"127.0.0.1:0\"\nauth = \"keys\"\n\
             [[listener]]\nname = \"inside\"\nbind = \"unix:{socket}\"\nauth = \"none\"\n\
             [[upstream]]\nname = \"gpu0\"\nurl = \"{}/b?key=secret-of-the-url\"\n\
             models = [\"m\"]\npath_mode = \"fixed\"\n\
             auth = {{ type = \"bearer\", token = \"secret-of-the-server\" }}\n\
             [[upstream]]\nname = \"off\"\nurl = \"http://10.0.0.1\"\nenabled = false\nmodels = [\"n\"]\n\
             [[key]]\nname = \"k\"\nkey = \"sk-secret-of-a-client\"\n\
             [admin]\nbind = \"127.0.0.1:0\"\ntoken = \"secret-of-the-operator\"\n",
            mock.url()
        )
    };
    for (name, format) in [("block-text", "text"), ("block-json", "json")] {
        let socket = folder(name).join("inside.sock").display().to_string();
        let run = Run::start(name, &config(format, &socket));
        let main = run.behind("listener   main on ");
        assert!(main.contains(" (keys)"), "{main}");
        let inside = run.behind("listener   inside on ");
        assert!(inside.starts_with(&format!("unix:{socket} (open)")), "{inside}");
        let admin = run.behind("admin      on ");
        assert!(admin.contains(" (token)"), "{admin}");
        let upstream = run.behind("upstream   gpu0 at ");
        assert!(upstream.starts_with(&format!("{}/b", mock.url())), "{upstream}");
        assert!(run.behind("upstream   off at ").starts_with("http://10.0.0.1 (disabled)"));
        assert!(run.behind("models     ").starts_with('m'));
        run.behind("limits     ");
        // The ports are those that were obtained.
        for addr in [address(&main), address(&admin)] {
            assert_ne!(addr.port(), 0);
            assert_eq!(Client::connect(addr).send(chat("", false)).answer().status, 401);
        }
        let lines = run.lines();
        assert!(!lines.iter().any(|line| line.contains("secret")), "{lines:?}");
        if format == "json" {
            for line in &lines {
                let (level, message) = level_and_message(line);
                let is_fact = ["listener ", "admin ", "upstream ", "models ", "limits "]
                    .iter()
                    .any(|begin| message.starts_with(begin));
                // Beside them there may be warnings: few open files, no io_uring.
                assert!(level == "info" || (level == "warn" && !is_fact), "{line}");
            }
        }
    }
}

#[test]
fn the_loss_of_the_store_is_one_line_and_its_return_another() {
    let Some(mut redis) = Redis::start() else { return };
    let mock = mock();
    let text = format!(
        "[process]\ncores = 1\n[log]\nformat = \"json\"\n\
         [[listener]]\nname = \"main\"\nbind = \"127.0.0.1:0\"\nauth = \"keys\"\n\
         [[upstream]]\nname = \"a\"\nurl = \"{}\"\nmodels = [\"m\"]\n\
         [[key]]\nname = \"k\"\nkey = \"sk-a\"\nrpm = 100000\n\
         [ratelimit_store]\ntype = \"redis\"\nurl = \"redis://127.0.0.1:{}\"\n",
        mock.url(),
        redis.port()
    );
    let run = Run::start("store", &text);
    let addr = address(&run.behind("listener   main on "));
    let told = || -> Vec<(String, String)> {
        let lines = run.lines();
        let of_store = lines.iter().filter(|line| line.contains("ratelimit_store"));
        of_store.map(|line| level_and_message(line)).collect()
    };
    let serves = || {
        let mut client = Client::connect(addr);
        for _ in 0..30 {
            let answer = client.send(chat("x-api-key: sk-a\r\n", false)).answer();
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    };
    serves();
    assert_eq!(told(), []);
    for outage in 1..=2 {
        redis.kill();
        wait_until("the loss is told", || told().len() == 2 * outage - 1);
        serves();
        redis.restart();
        wait_until("the return is told", || told().len() == 2 * outage);
        serves();
    }
    let lost = "ratelimit_store: lost; on_error holds until it is back";
    let both = [lost, "ratelimit_store: back"].map(|line| ("warn".to_owned(), line.to_owned()));
    assert_eq!(told(), [both.clone(), both].concat());
}

#[test]
fn signals_reload_and_reopen_and_the_service_manager_is_told() {
    let (mock, name) = (mock(), "signals");
    let dir = folder(name);
    std::fs::create_dir_all(&dir).unwrap();
    let manager = dir.join("notify");
    let told = UnixDatagram::bind(&manager).unwrap();
    told.set_read_timeout(Some(LIMIT)).unwrap();
    let next = || {
        let mut message = [0; 512];
        let bytes = told.recv(&mut message).expect("the manager is told");
        String::from_utf8_lossy(&message[..bytes]).into_owned()
    };
    let log = dir.join("access.log");
    let config = |models: &str| {
        format!(
            "[process]\ncores = 1\ndrain = \"3s\"\n[log]\naccess = \"{}\"\n\
             [[listener]]\nname = \"main\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n\
             [[upstream]]\nname = \"a\"\nurl = \"{}\"\nmodels = [{models}]\n",
            log.display(),
            mock.url()
        )
    };
    let mut run = Run::start_with(name, &config("\"m\""), &[("NOTIFY_SOCKET", &manager)]);
    assert!(next().contains("READY=1"));
    let addr = address(&run.behind("listener   main on "));
    let ask = |model: &str| {
        let body = format!("{{\"model\":\"{model}\",\"messages\":[]}}");
        Client::connect(addr).send(post("/v1/chat/completions", "", body)).answer().status
    };
    let lines = || std::fs::read_to_string(&log).map_or(0, |text| text.lines().count());
    assert_eq!((ask("m"), ask("n")), (200, 404));
    wait_until("both are logged", || lines() == 2);

    std::fs::rename(&log, dir.join("access.log.1")).unwrap();
    run.signal("USR1");
    wait_until("the log is opened again", || log.exists());
    assert_eq!(ask("m"), 200);
    wait_until("its line is in the new file", || lines() == 1);

    std::fs::write(dir.join("c.toml"), config("\"m\", \"n\"")).unwrap();
    run.signal("HUP");
    let reloading = next();
    assert!(reloading.contains("RELOADING=1") && reloading.contains("MONOTONIC_USEC="));
    assert!(next().contains("READY=1"));
    assert_eq!((ask("m"), ask("n")), (200, 200));
    assert!(run.behind("info: config reloaded: ").starts_with("1 change"));
    assert!(run.behind("info: config: ~ upstream a: ").starts_with("models: "));

    std::fs::write(dir.join("c.toml"), "[[listener]]\n").unwrap();
    run.signal("HUP");
    assert!(next().contains("RELOADING=1") && next().contains("READY=1"));
    run.behind("error: config not reloaded: what was in force stays");
    assert_eq!((ask("m"), ask("n")), (200, 200));

    run.signal("TERM");
    let stopping = next();
    assert!(stopping.contains("STOPPING=1"), "{stopping}");
    assert!(stopping.contains("EXTEND_TIMEOUT_USEC=8000000"), "{stopping}");
    assert!(run.child.wait().unwrap().success());
}

#[test]
fn check_live_asks_the_running_process() {
    let (mock, name) = (mock(), "live");
    let config = |admin: &str, token: &str| {
        format!(
            "[process]\ncores = 1\n\
             [[listener]]\nname = \"main\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n\
             [[upstream]]\nname = \"a\"\nurl = \"{}\"\nmodels = [\"m\"]\n\
             [admin]\nbind = \"{admin}\"\ntoken = \"{token}\"\n",
            mock.url()
        )
    };
    let check = |file: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tokenring"));
        let told = command.args(["check", "--live", "-c"]).arg(file).output().unwrap();
        let [out, err] = [told.stdout, told.stderr].map(|text| String::from_utf8(text).unwrap());
        (told.status.code(), out, err)
    };
    let mut run = Run::start(name, &config("127.0.0.1:0", "t0ken"));
    let admin = address(&run.behind("admin      on "));
    let main = address(&run.behind("listener   main on "));
    let file = run.dir.join("asked.toml");
    std::fs::write(&file, config(&admin.to_string(), "t0ken")).unwrap();
    assert_eq!(check(&file), (Some(0), format!("{admin}: ready\n"), String::new()));

    std::fs::write(&file, config(&admin.to_string(), "wr0ng")).unwrap();
    let (code, _, err) = check(&file);
    assert!(code == Some(1) && err.contains("401") && !err.contains("wr0ng"), "{err}");

    // While it drains it is there, and wants no more.
    std::fs::write(&file, config(&admin.to_string(), "t0ken")).unwrap();
    let mut stream = Client::connect(main);
    stream.send(chat("x-mock: interval=100ms,tokens=600\r\n", true));
    stream.through(b"\n\n").expect("it has begun");
    run.signal("TERM");
    run.behind("SIGTERM: draining");
    wait_until("it tells that it drains", || check(&file).2.contains("not ready: draining"));
    assert_eq!(check(&file).0, Some(1));
    run.signal("TERM");
    assert!(run.child.wait().unwrap().success());
    let (code, _, err) = check(&file);
    assert!(code == Some(1) && err.starts_with(&admin.to_string()), "{err}");

    std::fs::write(&file, config(&admin.to_string(), "t0ken").replace("[admin]", "[log]")).unwrap();
    assert_eq!(check(&file).0, Some(1));
}
