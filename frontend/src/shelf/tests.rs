//! Records come and go, in memory and on disk.

use tempfile::TempDir;

use super::*;

fn shelf(folder: &TempDir) -> Arc<Shelf<String>> {
    Shelf::read(folder.path().join("kind")).unwrap()
}

#[tokio::test]
async fn records_are_a_tenants_and_survive() {
    let folder = TempDir::new().unwrap();
    let before = shelf(&folder);
    before.put("acme", "a", "one".to_owned()).await.unwrap();
    before.put("acme", "b", "two".to_owned()).await.unwrap();
    before.put("other", "c", "three".to_owned()).await.unwrap();
    before.change("b", |record| record.push('!')).await.unwrap();
    before.note("a", |record| record.push('?'));
    assert_eq!(*before.get("acme", "a").unwrap(), "one?");
    before.retain(|shelved| shelved.id != "c");
    before.settle().await;
    // Neither is a record.
    fs::write(folder.path().join("kind/d.json"), "{").unwrap();
    fs::write(folder.path().join("kind/e.part"), "{}").unwrap();

    let after = shelf(&folder);
    let all: Vec<_> = after.of_tenant("acme").into_iter().map(|shelved| shelved.id).collect();
    assert_eq!(all, ["b", "a"], "the newest first");
    assert_eq!(*after.get("acme", "b").unwrap(), "two!");
    assert_eq!(*after.get("acme", "a").unwrap(), "one", "what was noted is not on disk");
    assert_eq!(after.get("other", "a"), None);
    assert_eq!(after.all().len(), 2);
}

#[tokio::test]
async fn the_newest_of_many_changes_is_on_disk() {
    let folder = TempDir::new().unwrap();
    let before = shelf(&folder);
    drop(before.put("acme", "a", String::new()));
    for _ in 0..100 {
        drop(before.change("a", |record| record.push('x')));
    }
    before.settle().await;
    assert_eq!(shelf(&folder).get("acme", "a").unwrap().len(), 100);
}
