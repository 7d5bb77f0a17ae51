/* The message of a transaction: DATA with dot-unstuffing, BDAT, the header, and the verdict at its
 * end.
 *
 * Only the header is kept; the rest is counted line by line, so that the simulator can be the sink
 * of a bench. What must stay true: message_bytes counts the message without stuffing dots and
 * without the final dot's line. */
#include "bench/sim/hve_session.h"
#include "bench/sim/text.h"
#include "gateway/base/clock.h"

#include <inttypes.h>
#include <stdio.h>

/* Whether there is a transaction to receive a message for; answers when not. */
static bool may_receive(struct hve_session *session)
{
    if (!session->in_mail) {
        hve_reject(session, "503 5.5.2 Need mail command");
        return false;
    }
    if (session->recipient_count == 0) {
        hve_reject(session, "554 5.5.1 No valid recipients");
        hve_clear(session);
        return false;
    }
    struct ledger_counts *counts = ledger_counts(session->sim->ledger, SIM_HVE);
    struct ledger_counts ignored = {0}; /* SMTP announces no time, so nobody can keep it */
    if (closures_check(session->sim->closures, span_of(session->account),
                       loop_now_ms(session->sim->loop), &ignored) > 0) {
        counts->throttled++;
        hve_reply(session, "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded");
        hve_clear(session);
        return false;
    }
    return true;
}

void hve_data_command(struct hve_session *session, struct span argument)
{
    (void)argument;
    if (!may_receive(session)) {
        return;
    }
    session->state = HVE_DATA;
    session->at_line_start = true;
    hve_reply(session, "354 Start mail input; end with <CRLF>.<CRLF>");
}

/* Whether From: names the account first (services.md 1.4, 5.6.241). */
static bool from_is_account(const struct hve_session *session)
{
    char room[1024];
    struct span from = text_header(buf_span(&session->head), "From");
    return span_ieq(text_first_address(from, room, sizeof(room)), span_of(session->account));
}

static void keep(struct hve_session *session, struct span bytes)
{
    session->message_bytes += bytes.len;
    if (!session->head_done && buf_append(&session->head, bytes) != 0) {
        session->head_done =
            true; /* a header this long is cut; From: and Message-ID stand in front */
    }
    if (session->sim->conf->keep_bodies != NULL &&
        session->message_bytes <= session->sim->conf->hve_max_bytes &&
        buf_append(&session->raw, bytes) != 0) {
        session->message_bytes = session->sim->conf->hve_max_bytes +
                                 1; /* no memory to keep it: refuse as too large */
    }
}

static void record(struct hve_session *session, struct span message_id)
{
    struct span *recipients = mem_alloc(session->recipient_count * sizeof(*recipients));
    struct span all = buf_span(&session->recipients);
    size_t from = 0;
    for (size_t i = 0; i < session->recipient_count; i++) {
        recipients[i] = span_make(all.data + from, session->ends[i] - from);
        from = session->ends[i];
    }
    const struct ledger_message message = {
        .service = SIM_HVE,
        .account = span_of(session->account),
        .message_id = message_id,
        .recipients = recipients,
        .recipient_count = session->recipient_count,
        .bytes = session->message_bytes,
    };
    uint64_t number = ledger_accept(session->sim->ledger, &message);
    sim_keep_body(session->sim, SIM_HVE, number, buf_span(&session->raw));
    mem_free(recipients);
}

static void accept_message(struct hve_session *session)
{
    struct span message_id = text_header(buf_span(&session->head), "Message-ID");
    record(session, message_id);
    if (hve_fault(session, PHASE_ACCEPTED, message_id)) {
        return;
    }
    if (session->delay_ms == 0) {
        session->delay_ms = (int64_t)session->sim->conf->latency_ms[SIM_HVE];
    }
    hve_reply(session,
              "250 2.6.0 %.*s [InternalId=%" PRIu64 ", Hostname=" HVE_HOST
              "] Queued mail for delivery",
              (int)(message_id.len < 300 ? message_id.len : 300),
              message_id.len > 0 ? message_id.data : "",
              ledger_counts(session->sim->ledger, SIM_HVE)->transactions);
}

/* The whole message is here: every refusal that belongs after the final dot, or the yes. */
static void end_message(struct hve_session *session)
{
    const struct sim_conf *conf = session->sim->conf;
    session->state = HVE_COMMAND;
    if (session->message_bytes > conf->hve_max_bytes) {
        hve_reject(session, "552 5.3.4 Message size exceeds fixed maximum message size");
    } else if (session->bare_lf) {
        hve_reject(
            session,
            "550 5.6.11 SMTPSEND.BareLinefeedsAreIllegal; message contains bare linefeeds, which cannot "
            "be sent via DATA");
    } else if (!conf->hve_open && !from_is_account(session)) {
        hve_reject(session,
                   "550 5.6.241 From address is not the address of the High Volume Email account");
    } else if (!hve_fault(session, PHASE_END, buf_span(&session->recipients))) {
        accept_message(session);
    }
    hve_clear(session);
}

/* One line with its end, dot taken away. `complete` is false for the front part of a line. */
static void take_line(struct hve_session *session, struct span line, bool complete)
{
    bool ends_head = session->at_line_start && complete && span_trim(line).len == 0;
    if (session->at_line_start && line.data[0] == '.') {
        line = span_make(line.data + 1, line.len - 1);
    }
    keep(session, line);
    if (ends_head) {
        session->head_done = true;
    }
    session->at_line_start = complete;
}

size_t hve_data_read(struct hve_session *session, struct span bytes)
{
    size_t used = 0;
    while (used < bytes.len) {
        struct span rest = span_make(bytes.data + used, bytes.len - used);
        const char *lf = memchr(rest.data, '\n', rest.len);
        if (lf == NULL) {
            /* The last byte may be the CR of the line's end, and a dot may be the end of the
             * message: both wait. */
            size_t sure = session->at_line_start && rest.len < 3 ? 0 : rest.len - 1;
            if (sure > 0) {
                take_line(session, span_make(rest.data, sure), false);
            }
            return used + sure;
        }
        size_t len = (size_t)(lf - rest.data) + 1;
        bool crlf = len >= 2 && rest.data[len - 2] == '\r';
        if (session->at_line_start && crlf && len == 3 && rest.data[0] == '.') {
            end_message(session);
            return used + len;
        }
        if (!crlf) {
            session->bare_lf = true;
        }
        take_line(session, span_make(rest.data, len), true);
        used += len;
    }
    return used;
}

void hve_chunk_command(struct hve_session *session, struct span argument)
{
    struct span size = span_cut(&argument, ' ');
    if (span_to_u64(size, UINT32_MAX, &session->chunk_left) != 0) {
        hve_reject(session, "501 5.5.4 Invalid arguments");
        hve_end(session); /* how many bytes follow is not known */
        return;
    }
    session->chunk_last = span_ieq(span_trim(argument), SPAN_LIT("LAST"));
    if (!session->chunk_refused &&
        (hve_fault(session, PHASE_DATA, SPAN_LIT("BDAT")) || !may_receive(session))) {
        session->chunk_refused = true;
    } else if (session->chunk_refused) {
        hve_reject(session, "503 5.5.2 Bad sequence of commands");
    }
    if (!session->ending) {
        session->state = HVE_CHUNK;
    }
    if (session->chunk_left == 0) {
        (void)hve_chunk_read(
            session, (struct span){.data = "", .len = 0}); /* an empty chunk is complete at once */
    }
}

static void end_chunk(struct hve_session *session)
{
    session->state = HVE_COMMAND;
    if (session->chunk_refused) {
        if (session->chunk_last) {
            hve_clear(session);
        }
    } else if (session->chunk_last) {
        end_message(session);
    } else {
        hve_reply(session, "250 2.6.0 Chunk received OK");
    }
}

/* In chunks the header is found line by line too; a bare LF is allowed here (BINARYMIME). */
static void take_chunk(struct hve_session *session, struct span bytes)
{
    if (!session->chunk_refused) {
        keep(session, bytes);
        if (!session->head_done &&
            span_search(buf_span(&session->head), SPAN_LIT("\r\n\r\n")) < buf_len(&session->head)) {
            session->head_done = true;
        }
    }
}

size_t hve_chunk_read(struct hve_session *session, struct span bytes)
{
    size_t len = session->chunk_left < bytes.len ? (size_t)session->chunk_left : bytes.len;
    if (len > 0) {
        take_chunk(session, span_make(bytes.data, len));
    }
    session->chunk_left -= len;
    if (session->chunk_left == 0) {
        end_chunk(session);
    }
    return len;
}
