//! `brigade plan` on a real header, and the settings that it obeys.

use std::path::Path;

use brigade_coordinator::render::PlanView;

use crate::program::{brigade, outcome, run};

/// Eight layers of 2.5 MiB.
fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    crate::tiny_model::write_model(&home.path().join("tiny.gguf"), 8);
    home
}

fn view(home: &Path, args: &[&str], env: &[(&str, &str)]) -> PlanView {
    let mut all = vec!["plan", "tiny.gguf", "--json"];
    all.extend(args);
    let outcome = outcome(brigade(home, &all).envs(env.iter().copied()));
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    serde_json::from_str(&outcome.out).unwrap()
}

#[test]
fn workers_share_the_layers_within_their_memory() {
    let home = home();
    let view =
        view(home.path(), &["--workers", "3", "--memory", "16MiB", "--parallel", "1", "--ctx", "512"], &[]);
    assert_eq!((view.model.as_str(), view.layers, view.context), ("tiny", 8, 512));
    let names: Vec<&str> = view.stages.iter().map(|stage| stage.worker.as_str()).collect();
    assert_eq!(names.len(), 3, "every worker has a stage: {names:?}");
    let mut next = 0;
    for stage in &view.stages {
        assert_eq!(stage.shard.layers.start, next);
        next = stage.shard.layers.end;
        assert!(stage.total_bytes() <= stage.budget_bytes, "{stage:?}");
    }
    assert_eq!(next, 8);
    assert!(view.decode_tokens_per_s > 0.0 && view.ttft_ms.is_some_and(|ms| ms > 0.0));
    assert!(view.notes.iter().any(|note| note.contains("assumed")), "{:?}", view.notes);
}

#[test]
fn the_table_shows_a_bar_for_every_stage() {
    let home = home();
    let outcome = run(home.path(), &["plan", "tiny.gguf", "--workers", "2", "--memory", "32MiB"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(outcome.out.matches('[').count(), 2, "{}", outcome.out);
    for word in
        ["STAGE", "w1", "w2", "embedding + layers 0..", "+ head", "context", "predicted", "bottleneck"]
    {
        assert!(outcome.out.contains(word), "{word} in {}", outcome.out);
    }
}

#[test]
fn a_split_is_obeyed_from_a_flag_a_variable_and_the_settings_and_a_wrong_one_is_refused() {
    let home = home();
    let layers =
        |view: PlanView| -> Vec<usize> { view.stages.iter().map(|s| s.shard.layers.len()).collect() };
    let workers = ["--workers", "3", "--memory", "64MiB", "--ctx", "512"];
    assert_eq!(layers(view(home.path(), &[&workers[..], &["--split", "5,1,2"]].concat(), &[])), [5, 1, 2]);
    assert_eq!(layers(view(home.path(), &workers, &[("BRIGADE_SPLIT", "1,1,6")])), [1, 1, 6]);
    std::fs::write(home.path().join("brigade.toml"), "split = [2, 2, 4]\n").unwrap();
    assert_eq!(layers(view(home.path(), &workers, &[])), [2, 2, 4]);
    for (split, wanted) in
        [("3,4", "8 layers"), ("4,4", "as many stages as workers"), ("8,0", "at least one"), ("x", "x")]
    {
        for command in ["plan", "up"] {
            let outcome =
                run(home.path(), &[&[command, "tiny.gguf", "--split", split], &workers[..]].concat());
            assert!(matches!(outcome.code, Some(1 | 2)), "{outcome:?}");
            assert!(outcome.err.contains(wanted), "{split}: {outcome:?}");
        }
    }
}

#[test]
fn too_little_memory_fails_with_what_is_missing() {
    let home = home();
    for command in ["plan", "up"] {
        let outcome = run(home.path(), &[command, "tiny.gguf", "--workers", "2", "--memory", "8MiB"]);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(outcome.err.starts_with("error: failed to place tiny on 2 workers: "), "{}", outcome.err);
        for word in ["MiB more", "w1", "w2", "8.0 MiB"] {
            assert!(outcome.err.contains(word), "{word} in {}", outcome.err);
        }
    }
}

#[test]
fn a_cluster_file_needs_no_hardware() {
    let home = home();
    let cluster = "[[device]]\nname = 'studio'\nmemory = '20MiB'\nbandwidth_gbps = 800\ntflops = 27\n\
                   [[device]]\nname = 'mini'\nmemory = '20MiB'\nbandwidth_gbps = 120\ntflops = 4\n";
    std::fs::write(home.path().join("cluster.toml"), cluster).unwrap();
    let view = view(home.path(), &["--cluster", "cluster.toml", "--parallel", "1", "--ctx", "256"], &[]);
    let layers = |name: &str| -> usize {
        view.stages.iter().filter(|s| s.worker == name).map(|s| s.shard.layers.len()).sum()
    };
    assert_eq!(layers("studio") + layers("mini"), 8, "{view:?}");
    assert!(layers("studio") >= layers("mini"), "the fast one holds more: {view:?}");

    std::fs::write(home.path().join("cluster.toml"), "[[device]]\nname = 'x'\n").unwrap();
    let wrong = run(home.path(), &["plan", "tiny.gguf", "--cluster", "cluster.toml"]);
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    assert!(wrong.err.contains("cluster.toml") && wrong.err.contains("memory"), "{}", wrong.err);
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let home = home();
    let context = |args: &[&str], env: &[(&str, &str)]| view(home.path(), args, env).context;
    let model = 2048;
    assert_eq!(context(&[], &[]), model, "the default");

    let global = home.path().join(".config/brigade");
    std::fs::create_dir_all(&global).unwrap();
    std::fs::write(global.join("brigade.toml"), "ctx = 1024").unwrap();
    assert_eq!(context(&[], &[]), 1024, "the user's file");

    std::fs::write(home.path().join("brigade.toml"), "ctx = 960\n[up]\nctx = 928").unwrap();
    assert_eq!(context(&[], &[]), 960, "the directory's file, and the table of another command says nothing");

    std::fs::write(home.path().join("brigade.toml"), "ctx = 960\n[plan]\nctx = 896").unwrap();
    assert_eq!(context(&[], &[]), 896, "the command's table");

    std::fs::write(home.path().join("other.toml"), "ctx = 832").unwrap();
    assert_eq!(context(&["--config", "other.toml"], &[]), 832, "the file named");
    assert_eq!(context(&[], &[("BRIGADE_CONFIG", "other.toml")]), 832, "the file named in the environment");

    assert_eq!(context(&[], &[("BRIGADE_CTX", "768")]), 768, "the environment");
    assert_eq!(context(&["--ctx", "704"], &[("BRIGADE_CTX", "768")]), 704, "the flag");
}

#[test]
fn a_file_can_name_the_model_and_turn_flags_on() {
    let home = home();
    let settings =
        "model = 'tiny.gguf'\nmemory = '64MiB'\nparallel = 1\nkv_dtype = 'f32'\n[plan]\njson = true\n";
    std::fs::write(home.path().join("brigade.toml"), settings).unwrap();
    let outcome = run(home.path(), &["plan"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let view: PlanView = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!(view.stages[0].budget_bytes.as_mib(), 64.0);
}

#[test]
fn a_list_at_the_top_is_for_the_flags_that_take_many() {
    let home = home();
    std::fs::write(home.path().join("brigade.toml"), "api-key = ['one', 'two']").unwrap();
    assert_eq!(view(home.path(), &[], &[]).context, 2048);
    let status = run(home.path(), &["status", "--url", "http://127.0.0.1:1"]);
    assert_eq!(status.code, Some(1), "the first key is as good: {status:?}");
}

#[test]
fn a_wrong_file_says_where_and_what() {
    let home = home();
    for (text, said) in [
        ("memroy = '1GiB'", "unknown key `memroy`; did you mean `memory`?"),
        ("[sevre]\nctx = 1", "unknown table `sevre`; did you mean `serve`?"),
        ("[up]\nmin-workers = 2", "unknown key in [up] `min-workers`"),
        ("ctx = 'many'", "invalid value 'many' for '--ctx <N>'"),
        ("ctx = [1, 2]", "`ctx` takes one value, not a list of 2"),
        ("ctx = 2020-01-01", "`ctx` must be a string"),
        ("ctx = ", "is not valid TOML"),
    ] {
        std::fs::write(home.path().join("brigade.toml"), text).unwrap();
        let outcome = run(home.path(), &["plan", "tiny.gguf"]);
        assert_eq!(outcome.code, Some(2), "{text}: {outcome:?}");
        assert!(
            outcome.err.contains("brigade.toml") && outcome.err.contains(said),
            "{text}: {}",
            outcome.err
        );
        assert_eq!(run(home.path(), &["plan", "--help"]).code, Some(0), "help comes whatever the file says");
    }
    let missing = run(home.path(), &["plan", "tiny.gguf", "--config", "none.toml"]);
    assert_eq!(missing.code, Some(2));
    assert!(missing.err.contains("none.toml"), "{}", missing.err);
}
