//! A source read once, as a table: `SELECT ... FROM t` without `STREAM`.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::TableType;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;

use crate::plan::SourceFactory;

/// A table over everything between a source's initial and latest offset at the time of the scan.
pub struct BoundedTable {
    factory: Arc<dyn SourceFactory>,
}

impl BoundedTable {
    pub fn new(factory: Arc<dyn SourceFactory>) -> Self {
        BoundedTable { factory }
    }
}

impl fmt::Debug for BoundedTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BoundedTable({})", self.factory.description())
    }
}

#[async_trait]
impl TableProvider for BoundedTable {
    fn schema(&self) -> SchemaRef {
        self.factory.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let external = |e| DataFusionError::External(Box::new(e));
        let mut source = self.factory.open(None).await.map_err(external)?;
        let narrowed = projection.is_some_and(|columns| source.project(columns));
        let start = source.initial_offset().await.map_err(external)?;
        let end = source.latest_offset().await.map_err(external)?;
        let partitions = if start == end { Vec::new() } else { source.read(&start, &end).await.map_err(external)? };
        let partitions = if partitions.is_empty() { vec![Vec::new()] } else { partitions };
        let projection = projection.filter(|_| !narrowed).cloned();
        Ok(MemorySourceConfig::try_new_exec(&partitions, source.schema(), projection)?)
    }
}
