//! Large objects whose parts or completion fail.

use super::super::conformance::bytes;
use super::failing::{one_object, plan};
use super::*;

#[tokio::test]
async fn a_part_that_fails_is_sent_again_alone() {
    let (_directory, stores) = one_object().await;
    for store in stores {
        let plan = plan("part@2-3=503; part@5=lost");
        let store = store.with_faults(plan.clone());
        let body = bytes(1, 55);
        let mut upload = store.upload("big", 10, 1).await.unwrap();
        upload.write(body.clone()).await.unwrap();
        assert_eq!(upload.finish().await.unwrap(), 55);
        assert_eq!(store.get("big").await.unwrap().unwrap(), body);
        assert_eq!((store.retries(), plan.injected()), (3, 3));
    }
}

#[tokio::test]
async fn an_upload_whose_part_keeps_failing_leaves_nothing() {
    let (_directory, stores) = one_object().await;
    for store in stores {
        let faulty = store.clone().with_faults(plan("part@3+=503"));
        let mut upload = faulty.upload("big/one", 10, 1).await.unwrap();
        let mut result = Ok(());
        for _ in 0..5 {
            result = upload.write(bytes(1, 10)).await;
            if result.is_err() {
                break;
            }
        }
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(
            upload.write(bytes(1, 10)).await.is_err(),
            "an upload that failed stays failed"
        );
        assert!(upload.finish().await.is_err());
        assert_eq!(store.list("big", None).await.unwrap(), []);
        assert_eq!(store.get("big/one").await.unwrap(), None);
    }
}

#[tokio::test]
async fn no_more_parts_than_allowed_are_under_way() {
    let store = memory().with_faults(plan("part=hang"));
    let mut upload = store.upload("big", 10, 2).await.unwrap();
    let limit = Duration::from_millis(200);
    for _ in 0..2 {
        tokio::time::timeout(limit, upload.write(bytes(1, 10)))
            .await
            .unwrap()
            .unwrap();
    }
    let third = tokio::time::timeout(limit, upload.write(bytes(1, 10))).await;
    assert!(third.is_err(), "a third part was taken into memory");
}

#[tokio::test]
async fn a_completion_whose_answer_is_lost_is_a_success() {
    let (_directory, stores) = one_object().await;
    for store in stores {
        for faults in ["complete@1=lost", "complete=lost"] {
            let store = store.clone().with_faults(plan(faults));
            let mut upload = store.upload("big", 10, 2).await.unwrap();
            upload.write(bytes(1, 25)).await.unwrap();
            assert_eq!(upload.finish().await.unwrap(), 25);
            assert_eq!(store.get("big").await.unwrap().unwrap(), bytes(1, 25));
            store.delete("big").await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_completion_that_fails_is_an_error_even_over_an_older_object() {
    let (_directory, stores) = one_object().await;
    for store in stores {
        store.put("big", bytes(9, 7)).await.unwrap();
        let faulty = store.clone().with_faults(plan("complete=503"));
        let mut upload = faulty.upload("big", 10, 2).await.unwrap();
        upload.write(bytes(1, 25)).await.unwrap();
        assert_eq!(
            upload.finish().await.unwrap_err().kind(),
            ErrorKind::Unavailable
        );
        assert_eq!(store.get("big").await.unwrap().unwrap(), bytes(9, 7));
        assert_eq!(store.list("", None).await.unwrap().len(), 2);
    }
}
