//! Static members of a classic group (KIP-345): they come back under another id and keep their place.

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::{JoinGroupRequest, JoinGroupResponse};

use super::machine::{Group, Joiner, State, join_error, sync_error};
use super::member::Member;
use super::undo::Undo;
use super::{Outcome, Reply};

impl Group {
    /// A static member is back under a new member id (KIP-345): it takes the place of its former self.
    #[expect(clippy::too_many_arguments, reason = "the parts of one request; a struct would only rename them")]
    pub(super) fn replace_static(
        &mut self,
        now_ms: i64,
        wall_ms: i64,
        config: &super::GroupConfig,
        old: &str,
        request: &JoinGroupRequest,
        joiner: Joiner,
        out: &mut Outcome,
    ) {
        let Some(mut member) = self.take(old) else { return };
        let id = joiner.fresh_member_id.clone();
        if let Some(waiter) = member.waiting_join.take() {
            out.reply(waiter, join_error(ErrorCode::FencedInstanceId, old));
        }
        if let Some(waiter) = member.waiting_sync.take() {
            out.reply(waiter, sync_error(ErrorCode::FencedInstanceId));
        }
        let was_leader = self.leader.as_deref() == Some(old);
        if was_leader {
            self.leader = Some(id.clone());
        }
        let protocol = self.protocol_name.clone().unwrap_or_default();
        let same_subscription =
            request.protocols.iter().any(|p| p.name == protocol && p.metadata == member.metadata(&protocol));
        let mut fresh = self.new_member(now_ms, id.clone(), request, &joiner);
        fresh.assignment = member.assignment.clone();
        fresh.synced = member.synced;
        fresh.waiting_join = None;
        self.add(fresh);
        let chosen = self.choose_protocol();
        if self.state == State::Stable && same_subscription && chosen.as_deref() == Some(protocol.as_str()) {
            out.records.push(self.record());
            out.undo.push(Undo::StaticReplaced { fresh: id.clone(), former: Box::new(member) });
            let skip = was_leader && joiner.supports_skipping_assignment;
            let reply = if was_leader && !skip { self.follower_reply(&id, old) } else { self.join_reply(&id, skip) };
            return out.reply(joiner.waiter, reply);
        }
        // While the assignment is being computed it is for the former id: the group begins anew, as in Kafka.
        if let Some(m) = self.members.get_mut(&id) {
            m.waiting_join = Some(joiner.waiter);
        }
        self.prepare_rebalance(now_ms, wall_ms, config, out);
    }

    /// For a replaced static leader of an old client: it must not compute an assignment again, so it is shown its
    /// former id as the leader.
    fn follower_reply(&self, member_id: &str, shown_leader: &str) -> Reply {
        match self.join_reply(member_id, false) {
            Reply::Join(r) => {
                Reply::Join(JoinGroupResponse { leader: shown_leader.to_owned(), members: Vec::new(), ..r })
            }
            other => other,
        }
    }

    /// That a static member came back under another id could not be stored: it is its former self again.
    pub(super) fn restore_static(&mut self, fresh: &str, mut former: Member, now_ms: i64, out: &mut Outcome) {
        let Some(replaced) = self.take(fresh) else { return };
        if let Some(waiter) = replaced.waiting_join {
            out.reply(waiter, join_error(ErrorCode::UnknownMemberId, fresh));
        }
        if let Some(waiter) = replaced.waiting_sync {
            out.reply(waiter, sync_error(ErrorCode::UnknownMemberId));
        }
        if self.leader.as_deref() == Some(fresh) {
            self.leader = Some(former.id.clone());
        }
        former.touch(now_ms);
        self.add(former);
    }
}
