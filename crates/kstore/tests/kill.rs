//! A process that is killed at a moment nobody chose: whatever it had acknowledged is there when the store is opened again.
//!
//! The test starts itself as the process, which writes to its standard output what is acknowledged; it is killed after a random
//! number of acknowledgements. While it writes it compacts and makes checkpoints, so that kills fall into those too: what etcd's
//! robustness tests found in crashes under load (#13766), with one member (#14370), while the file is rewritten (#14685) and in
//! compactions (#17780).
#![cfg(all(feature = "disk", unix))]

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use kstore::{
    DiskStore, Op, Range, Revision, Store, TableSpec, Txn, WatchRequest,
    testing::{CheckedStore, Random},
};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How often the process is killed.
const ROUNDS: usize = 200;
const CLIENTS: usize = 4;
/// Names the directory to the process that is to be killed.
const DIRECTORY: &str = "KSTORE_KILL_DIRECTORY";

fn open(directory: &Path) -> Result<DiskStore> {
    // Small, so that there are checkpoints, and files that are used again, between any two kills.
    Ok(DiskStore::builder(directory).segment_bytes(128 * 1024).checkpoint_bytes(64 * 1024).open()?)
}

/// The key of a client's commit of that number; its value is as long as `number` makes it.
fn key(client: usize, number: usize) -> String {
    format!("{client}/{number:06}")
}

fn value(number: usize) -> Vec<u8> {
    vec![b'v'; (number * 37) % 3_000]
}

/// Each commit of a client writes to both tables, and is told of once it is acknowledged.
async fn write_on(store: Arc<DiskStore>, client: usize) -> Result {
    let tables = [store.open_table(TableSpec::new("a"))?, store.open_table(TableSpec::new("b"))?];
    let mut number = store.snapshot().count(tables[0], Range::prefix(format!("{client}/")));
    loop {
        let put = |table| Op::put(table, key(client, number), value(number));
        let committed = store.commit(Txn::new().op(put(tables[0])).op(put(tables[1]))).await?;
        writeln!(std::io::stdout().lock(), "acknowledged {client} {number} {}", committed.revision)?;
        number += 1;
    }
}

/// How many revisions of history are kept.
const KEPT: u64 = 40;

/// Cuts history off, and makes a checkpoint now and then.
async fn tidy(store: Arc<DiskStore>) -> Result {
    for round in 0u64.. {
        let revision = store.barrier().await?;
        store.compact(Revision(revision.get().saturating_sub(KEPT))).await?;
        if round % 8 == 7 {
            store.checkpoint().await?;
        }
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// The process that is killed; nothing if it is not asked to be.
#[test]
fn process() -> Result {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let store = Arc::new(open(directory.as_ref())?);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let store = store.clone();
                tokio::spawn(async move { write_on(store, client).await.map_err(|error| error.to_string()) })
            })
            .collect();
        tidy(store).await?;
        for client in clients {
            client.await??;
        }
        Ok(())
    })
}

/// Starts the process, reads so many acknowledgements, kills it, and reads what it had written until then.
fn acknowledged_until_killed(directory: &Path, count: u64) -> Result<Vec<(usize, usize, Revision)>> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["process", "--exact", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let mut output = BufReader::new(child.stdout.take().ok_or("no output")?);
    let (mut text, mut seen) = (String::new(), 0);
    while seen < count && output.read_line(&mut text)? > 0 {
        seen = text.matches("acknowledged").count() as u64;
    }
    child.kill()?;
    child.wait()?;
    output.read_to_string(&mut text)?;
    assert!(seen >= count, "the process ended by itself: {text}");
    let parse = |line: &str| -> Option<(usize, usize, Revision)> {
        let mut words = line.split("acknowledged ").nth(1)?.split(' ').map(str::parse::<u64>);
        let mut word = || words.next()?.ok();
        Some((word()? as usize, word()? as usize, Revision(word()?)))
    };
    // The last line may have been cut in two.
    Ok(text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .filter_map(|line| parse(line.trim_end()))
        .collect())
}

#[test]
fn what_was_acknowledged_outlives_a_kill() -> Result {
    let directory = tempfile::tempdir()?;
    let mut random = Random::new(9);
    let mut known: HashMap<String, Revision> = HashMap::new();
    let (mut unclean, mut checkpoints, mut resumed) = (0, 0, 0);
    let mut seen = Revision::ZERO;
    for round in 0..ROUNDS {
        let count = 1 + random.below(60);
        for (client, number, revision) in acknowledged_until_killed(directory.path(), count)? {
            let twice = known.insert(key(client, number), revision);
            assert_eq!(
                twice, None,
                "round {round}: {client}/{number} was acknowledged before, and was not there"
            );
        }
        let store = CheckedStore::new(open(directory.path())?);
        let report = store.inner().recovery();
        unclean += usize::from(!report.clean);
        checkpoints += usize::from(report.checkpoint.is_some());
        let tables = [store.open_table(TableSpec::new("a"))?, store.open_table(TableSpec::new("b"))?];
        let snapshot = store.snapshot();
        snapshot.verify()?;
        for (key, revision) in &known {
            let found = snapshot.get(tables[0], key.as_bytes()).map(|entry| entry.modified());
            assert_eq!(found, Some(*revision), "round {round}: {key} was acknowledged at {revision}");
        }
        let whole = |table| -> Vec<_> {
            let all = snapshot.range(table, Range::all());
            all.map(|entry| (entry.key().clone(), entry.modified(), entry.value().len())).collect()
        };
        assert_eq!(whole(tables[0]), whole(tables[1]), "round {round}: a commit is there in half");
        assert_eq!(
            snapshot.revision().get() as usize,
            snapshot.len(tables[0]),
            "round {round}: a revision came twice"
        );
        for client in 0..CLIENTS {
            let mine = snapshot.range(tables[0], Range::prefix(format!("{client}/")));
            for (number, entry) in mine.enumerate() {
                assert_eq!(
                    entry.key(),
                    key(client, number).as_bytes(),
                    "round {round}: one is missing between others"
                );
                assert_eq!(entry.value(), &value(number));
            }
        }
        // A watch goes on where one before the kill ended, unless what it has not read is compacted.
        assert!(snapshot.revision() >= seen, "round {round}: the revision went back behind {seen}");
        match store.watch(WatchRequest::new(tables[0], seen)) {
            Ok(mut watch) => {
                let mut events = 0;
                while let Some(batch) = watch.try_next()? {
                    events += batch.events.len() as u64;
                }
                assert_eq!(events, snapshot.revision().get() - seen.get(), "round {round}: after {seen}");
                resumed += 1;
            }
            Err(error) => assert!(seen < snapshot.floor(), "round {round}: {error}"),
        }
        seen = snapshot.revision();
        // What was found counts as acknowledged from now on: it has been seen.
        known.extend(
            snapshot
                .range(tables[0], Range::all())
                .map(|entry| (String::from_utf8_lossy(entry.key()).into_owned(), entry.modified())),
        );
    }
    assert!(
        unclean > ROUNDS / 2 && checkpoints > ROUNDS / 2 && resumed > ROUNDS / 10,
        "{unclean} unclean, {checkpoints} checkpoints, {resumed} watches resumed"
    );
    Ok(())
}
