//! Producer ids: handed out from blocks that are claimed in the metadata log (`ProducerIdsRecord`).

use caudal_cluster::controller::allocate_producer_ids;
use caudal_protocol::ErrorCode;
use tokio::sync::Mutex;

use crate::metadata::{ChangeError, Metadata};

/// The ids of the current block that are left.
#[derive(Debug, Default)]
pub struct ProducerIds {
    left: Mutex<std::ops::Range<i64>>,
}

impl ProducerIds {
    /// # Errors
    /// A new block is needed and the metadata log cannot be written.
    pub async fn next(&self, metadata: &Metadata, broker_id: i32) -> Result<i64, ChangeError> {
        let mut left = self.left.lock().await;
        if left.is_empty() {
            *left = claim(metadata, broker_id).await?;
        }
        left.next().ok_or_else(|| ChangeError {
            code: ErrorCode::UnknownServerError,
            message: "a block of producer ids was empty".to_owned(),
        })
    }
}

async fn claim(metadata: &Metadata, broker_id: i32) -> Result<std::ops::Range<i64>, ChangeError> {
    let (first, count) = metadata.change(|image| allocate_producer_ids(image, broker_id)).await?;
    Ok(first..first + count)
}
