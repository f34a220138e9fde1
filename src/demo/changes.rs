//! An update and a delete, and how the answers change.

use anyhow::{Context as _, bail};
use shoal_schemas::{Payload, Point, PointId, Value, v1};

use super::{
    data::{self, Data},
    recall::text_of,
    stage::Stage,
    voice::Voice,
};

/// The query whose answers are changed.
const QUERY: usize = 1;

/// Deletes the best answer of a query, then rewrites the next best.
pub(super) async fn show(stage: &mut Stage, data: &Data, voice: &Voice) -> anyhow::Result<()> {
    let query = data
        .queries
        .get(QUERY)
        .context("there are too few queries")?;
    let vector = query.vector.as_slice();
    let before = stage.search(vector, &[]).await?;
    voice.say(&format!("\n  \"{}\"", query.text));
    tell(voice, "before", &before);
    let [first, second, ..] = before.as_slice() else {
        bail!("the query has {} answers", before.len());
    };

    let gone = PointId::new(&first.id)?;
    let token = stage.publisher.delete(&gone).await?.await?;
    let after = stage.search(vector, &[token]).await?;
    tell(voice, "after deleting the first", &after);
    if after.iter().any(|hit| hit.id == first.id) {
        bail!("`{}` is answered after its delete", first.id);
    }
    if after.first().map(|hit| &hit.id) != Some(&second.id) {
        bail!("the second answer did not become the first");
    }

    let id = PointId::new(&second.id)?;
    let old = data
        .point(&second.id)
        .context("an answer is no point of ours")?;
    let text = format!("{} [rewritten: {}]", data::text(old), query.answer);
    let mut payload = old.payload.0.clone();
    payload.insert("text".into(), Value::String(text.clone()));
    let rewritten = Point {
        vector: query.vector.clone(),
        payload: Payload(payload),
        ..old.clone()
    };
    let token = stage.publisher.publish(&id, &rewritten).await?.await?;
    let after = stage.search(vector, std::slice::from_ref(&token)).await?;
    tell(
        voice,
        "after giving the next one this query's own vector and another text",
        &after,
    );
    let Some(best) = after.first() else {
        bail!("nothing is answered after the update");
    };
    if best.id != second.id || text_of(best) != text || best.distance > 1e-3 {
        bail!("the update of `{}` does not show", second.id);
    }
    let repeated = after.iter().filter(|hit| hit.id == second.id).count();
    if repeated != 1 {
        bail!("`{}` is answered {repeated} times", second.id);
    }
    let count = stage.count(&[token]).await?;
    if count != u64::try_from(data.points.len())? - 1 {
        bail!(
            "there are {count} points after one delete of {}",
            data.points.len()
        );
    }
    Ok(())
}

fn tell(voice: &Voice, when: &str, hits: &[v1::Hit]) {
    voice.say(&format!("  {when}:"));
    for hit in hits.iter().take(3) {
        voice.say(&format!(
            "    {:.3}  {:12} {}",
            hit.distance,
            hit.id,
            text_of(hit)
        ));
    }
}
