#include "backends/smtp_client_internal.h"
#include "gateway/base/codec.h"
#include "gateway/base/failpoint.h"

#include <stdio.h>

/* How much content is written before congestion is asked about again. */
#define CHUNK_BYTES ((size_t)64 * 1024)

/* ---- Answers ---- */

/* Gives every recipient without an answer the one of the reply just read. */
static void answer_rest(struct smtp_client *client, struct smtp_transaction *transaction,
                        enum verdict_phase phase)
{
    struct answer answer;
    verdict_smtp_answer(client->conf->kind, phase, client->reply.code,
                        smtp_reply_text(&client->reply), &answer);
    for (size_t i = 0; i < transaction->recipient_count; i++) {
        if (transaction->marks[i] != MARK_ANSWERED) {
            transaction->answers[i] = answer;
            transaction->marks[i] = MARK_ANSWERED;
        }
    }
}

static void answer_all_own(struct smtp_transaction *transaction, enum verdict verdict,
                           const char *text)
{
    for (size_t i = 0; i < transaction->recipient_count; i++) {
        if (transaction->marks[i] != MARK_ANSWERED) {
            verdict_own_answer(verdict, text, &transaction->answers[i]);
            transaction->marks[i] = MARK_ANSWERED;
        }
    }
}

static void owe(struct smtp_client *client, enum smtp_owed kind, size_t recipient)
{
    ASSERT(client->owed_count < OWED_MAX);
    client->owed[(client->owed_first + client->owed_count) % OWED_MAX] = (struct smtp_owed_reply){
        .kind = (uint8_t)kind, .recipient = (uint8_t)recipient};
    client->owed_count++;
}

/* ---- Content ---- */

static enum smtp_line_state line_state_after(enum smtp_line_state before, struct span bytes)
{
    char last = bytes.data[bytes.len - 1];
    if (last == '\r') {
        return LINE_AFTER_CR;
    }
    bool after_cr = bytes.len > 1 ? bytes.data[bytes.len - 2] == '\r' : before == LINE_AFTER_CR;
    return last == '\n' && after_cr ? LINE_START : LINE_INSIDE;
}

static bool starts_line(struct span bytes, size_t at, enum smtp_line_state before)
{
    switch (at) {
    case 0:
        return before == LINE_START;
    case 1:
        return bytes.data[0] == '\n' && before == LINE_AFTER_CR;
    default:
        return bytes.data[at - 1] == '\n' && bytes.data[at - 2] == '\r';
    }
}

/* Writes a chunk with dots doubled at the start of lines (RFC 5321 4.5.2). Dots are rarer than line
 * ends, so they are what is searched for; runs between them go out as they are. */
static int write_stuffed(struct smtp_client *client, struct smtp_transaction *transaction,
                         struct span bytes)
{
    size_t start = 0;
    size_t at = 0;
    while (at < bytes.len) {
        const char *dot = memchr(bytes.data + at, '.', bytes.len - at);
        if (dot == NULL) {
            break;
        }
        at = (size_t)(dot - bytes.data);
        if (starts_line(bytes, at, (enum smtp_line_state)transaction->line_state)) {
            /* Up to and with this dot; the next run begins with it once more. */
            int rc = client->ops->write(client->ctx, span_make(bytes.data + start, at + 1 - start));
            if (rc != 0) {
                return rc;
            }
            start = at;
        }
        at++;
    }
    transaction->line_state = (uint8_t)line_state_after(
        (enum smtp_line_state)transaction->line_state, bytes);
    return client->ops->write(client->ctx, span_make(bytes.data + start, bytes.len - start));
}

/* Writes content until all is out (STEP_DONE) or the stream is congested (STEP_WAIT). */
static int write_content(struct smtp_client *client, struct smtp_transaction *transaction)
{
    for (; transaction->piece < 2; transaction->piece++, transaction->offset = 0) {
        struct span piece = transaction->content[transaction->piece];
        while (transaction->offset < piece.len) {
            if (client->ops->congested(client->ctx)) {
                return STEP_WAIT;
            }
            size_t left = piece.len - transaction->offset;
            size_t chunk = left < CHUNK_BYTES ? left : CHUNK_BYTES;
            int rc = write_stuffed(client, transaction,
                                   span_make(piece.data + transaction->offset, chunk));
            if (rc != 0) {
                return rc;
            }
            transaction->offset += chunk;
            FAILPOINT("smtp-mid-content");
        }
    }
    return client->ops->write(client->ctx, transaction->line_state == LINE_START
                                               ? SPAN_LIT(".\r\n")
                                               : SPAN_LIT("\r\n.\r\n"));
}

/* Goes on with the content. False when it has to wait. */
static bool content_step(struct smtp_client *client)
{
    struct smtp_transaction *transaction = client->content;
    int rc = write_content(client, transaction);
    if (rc == STEP_WAIT) {
        return false;
    }
    if (rc != STEP_DONE) {
        smtp_client_end(client, VERDICT_TRANSIENT,
                        "The connection failed while it was written to.");
        return false;
    }
    client->content = NULL;
    client->dot = transaction;
    owe(client, OWED_DOT, 0);
    FAILPOINT("smtp-after-dot");
    return true;
}

/* ---- Opening a transaction ---- */

static size_t content_bytes(const struct smtp_transaction *transaction)
{
    return transaction->content[0].len + transaction->content[1].len;
}

/* Line ends inside an address would be commands of their own. */
static bool has_control(struct span address)
{
    for (size_t i = 0; i < address.len; i++) {
        if ((unsigned char)address.data[i] < 32 || address.data[i] == 127) {
            return true;
        }
    }
    return false;
}

static bool needs_smtputf8(const struct smtp_transaction *transaction)
{
    bool needed = transaction->needs_smtputf8 || codec_has_8bit(transaction->reverse_path);
    for (size_t i = 0; i < transaction->recipient_count && !needed; i++) {
        needed = codec_has_8bit(transaction->recipients[i]);
    }
    return needed;
}

/* The smaller of the server's limit and ours; 0: none. */
static uint64_t size_limit(const struct smtp_client *client)
{
    uint64_t ours = client->conf->message_bytes;
    uint64_t theirs = client->size_limit;
    return ours == 0 || (theirs != 0 && theirs < ours) ? theirs : ours;
}

/* Answers what can never pass here before a byte is sent. False when nothing is left to send. */
static bool preflight(struct smtp_client *client, struct smtp_transaction *transaction)
{
    uint64_t limit = size_limit(client);
    size_t bytes = content_bytes(transaction);
    if (limit > 0 && bytes > limit) {
        char text[160];
        (void)snprintf(text, sizeof text, "The message has %zu bytes; the server takes %llu.",
                       bytes, (unsigned long long)limit);
        answer_all_own(transaction, VERDICT_MESSAGE_PERMANENT, text);
        return false;
    }
    if (transaction->needs_8bitmime && (client->extensions & SMTP_EXT_8BITMIME) == 0) {
        answer_all_own(transaction, VERDICT_MESSAGE_PERMANENT,
                       "The message holds 8-bit text and the server does not offer 8BITMIME.");
        return false;
    }
    if (needs_smtputf8(transaction) && (client->extensions & SMTP_EXT_SMTPUTF8) == 0) {
        answer_all_own(
            transaction, VERDICT_MESSAGE_PERMANENT,
            "The message has international addresses and the server does not offer SMTPUTF8.");
        return false;
    }
    if (has_control(transaction->reverse_path)) {
        answer_all_own(transaction, VERDICT_MESSAGE_PERMANENT,
                       "The sender address holds control characters.");
        return false;
    }
    bool any = false;
    for (size_t i = 0; i < transaction->recipient_count; i++) {
        if (transaction->marks[i] == MARK_OPEN && has_control(transaction->recipients[i])) {
            verdict_own_answer(VERDICT_RECIPIENT_PERMANENT, "The address holds control characters.",
                               &transaction->answers[i]);
            transaction->marks[i] = MARK_ANSWERED;
        }
        any = any || transaction->marks[i] == MARK_OPEN;
    }
    return any;
}

static void send_mail(struct smtp_client *client, const struct smtp_transaction *transaction)
{
    smtp_client_put(client, SPAN_LIT("MAIL FROM:<"));
    smtp_client_put(client, transaction->reverse_path);
    smtp_client_put(client, SPAN_LIT(">"));
    if ((client->extensions & SMTP_EXT_SIZE) != 0) {
        char size[40];
        (void)snprintf(size, sizeof size, " SIZE=%zu", content_bytes(transaction));
        smtp_client_put(client, span_of(size));
    }
    if (transaction->needs_8bitmime) {
        smtp_client_put(client, SPAN_LIT(" BODY=8BITMIME"));
    }
    if (needs_smtputf8(transaction)) {
        smtp_client_put(client, SPAN_LIT(" SMTPUTF8"));
    }
    smtp_client_put(client, SPAN_LIT("\r\n"));
    owe(client, OWED_MAIL, 0);
}

static void send_rcpt(struct smtp_client *client, const struct smtp_transaction *transaction,
                      size_t index)
{
    smtp_client_put(client, SPAN_LIT("RCPT TO:<"));
    smtp_client_put(client, transaction->recipients[index]);
    smtp_client_put(client, SPAN_LIT(">\r\n"));
    owe(client, OWED_RCPT, index);
}

/* Sends the next command of the opening transaction; false when all are sent. */
static bool send_command(struct smtp_client *client, struct smtp_transaction *transaction)
{
    size_t count = transaction->recipient_count;
    if (transaction->next_command == 0) {
        if (client->needs_rset) {
            smtp_client_put(client, SPAN_LIT("RSET\r\n"));
            owe(client, OWED_RSET, 0);
            client->needs_rset = false;
        }
        send_mail(client, transaction);
        transaction->next_command = 1;
        return true;
    }
    while (transaction->next_command <= count &&
           transaction->marks[transaction->next_command - 1] != MARK_OPEN) {
        transaction->next_command++;
    }
    if (transaction->next_command <= count) {
        send_rcpt(client, transaction, transaction->next_command - 1);
    } else if (transaction->next_command == count + 1) {
        smtp_client_put(client, SPAN_LIT("DATA\r\n"));
        owe(client, OWED_DATA, 0);
    } else {
        return false;
    }
    transaction->next_command++;
    return true;
}

/* Without PIPELINING: whether the replies so far make it pointless to go on. */
static bool opening_failed(const struct smtp_transaction *transaction)
{
    return transaction->mail_refused ||
           (transaction->next_command > transaction->recipient_count && transaction->accepted == 0);
}

static void close_opening(struct smtp_client *client)
{
    struct smtp_transaction *transaction = client->opening;
    client->opening = NULL;
    smtp_client_complete(client, transaction);
}

/* Sends what may be sent of the opening transaction now. False when replies must come first. */
static bool opening_step(struct smtp_client *client)
{
    struct smtp_transaction *transaction = client->opening;
    if (smtp_client_pipelines(client)) {
        while (client->state == STATE_READY && send_command(client, transaction)) {
        }
        return false;
    }
    if (client->owed_count > 0) {
        return false;
    }
    if (opening_failed(transaction)) {
        client->needs_rset = !transaction->mail_refused;
        close_opening(client);
        return true;
    }
    (void)send_command(client, transaction); /* the reply to the last one takes it out of opening */
    return false;
}

static void open_next(struct smtp_client *client)
{
    struct smtp_transaction *transaction = smtp_client_waiting_take(client);
    transaction->accepted = 0;
    transaction->later = 0;
    transaction->next_command = 0;
    transaction->mail_refused = false;
    if (preflight(client, transaction)) {
        client->opening = transaction;
    } else {
        smtp_client_complete(client, transaction);
    }
}

/* ---- The pump ---- */

static bool may_open(const struct smtp_client *client)
{
    return client->waiting != NULL &&
           (smtp_client_pipelines(client) || (client->dot == NULL && client->owed_count == 0));
}

static void say_quit(struct smtp_client *client)
{
    client->state = STATE_QUIT;
    smtp_client_put(client, SPAN_LIT("QUIT\r\n"));
}

void smtp_client_send_pump(struct smtp_client *client)
{
    client->inside = true;
    bool go_on = true;
    while (go_on && client->state == STATE_READY) {
        if (client->content != NULL) {
            smtp_client_flush(client);
            go_on = client->state == STATE_READY && content_step(client);
        } else if (client->opening != NULL) {
            go_on = opening_step(client);
        } else if (may_open(client)) {
            open_next(client);
        } else {
            go_on = false;
        }
    }
    if (client->state == STATE_READY && client->quitting && client->load == 0 &&
        client->owed_count == 0) {
        say_quit(client);
    }
    smtp_client_flush(client);
    client->inside = false;
}

/* ---- Replies to a transaction ---- */

/* "Too many recipients", in the form of RFC 5321 4.5.3.1.10 (452, by old servers 552). */
static bool too_many(const struct smtp_reply *reply)
{
    struct span text = smtp_reply_text(reply);
    if (reply->code != 452 && reply->code != 552) {
        return false;
    }
    if (span_starts(text, SPAN_LIT("4.5.3")) || span_starts(text, SPAN_LIT("5.5.3"))) {
        return true;
    }
    for (size_t i = 0; i < text.len; i++) {
        if (span_istarts(span_make(text.data + i, text.len - i), SPAN_LIT("too many"))) {
            return true;
        }
    }
    return false;
}

static void on_mail_reply(struct smtp_client *client)
{
    if (client->reply.code / 100 != 2) {
        client->opening->mail_refused = true;
        answer_rest(client, client->opening, PHASE_MAIL);
    }
}

static void on_rcpt_reply(struct smtp_client *client, size_t index)
{
    struct smtp_transaction *transaction = client->opening;
    if (transaction->mail_refused) {
        return; /* "503 need MAIL": the reply to MAIL is what counts */
    }
    if (client->reply.code / 100 == 2) {
        transaction->marks[index] = MARK_ACCEPTED;
        transaction->accepted++;
    } else if (transaction->accepted > 0 && too_many(&client->reply)) {
        transaction->marks[index] = MARK_LATER;
        transaction->later++;
    } else {
        verdict_smtp_answer(client->conf->kind, PHASE_RCPT, client->reply.code,
                            smtp_reply_text(&client->reply), &transaction->answers[index]);
        transaction->marks[index] = MARK_ANSWERED;
    }
}

static void begin_content(struct smtp_client *client)
{
    struct smtp_transaction *transaction = client->opening;
    if (!transaction->started) {
        transaction->started = true;
        if (client->ops->on_start(client->ctx, transaction) != 0) {
            /* DATA cannot be taken back: the only way not to send is to leave (RFC 5321 4.1.1.4).
             */
            answer_all_own(transaction, VERDICT_TRANSIENT,
                           "The start could not be recorded, so nothing was sent.");
            close_opening(client);
            smtp_client_end(client, VERDICT_TRANSIENT, "The session was left before any content.");
            return;
        }
    }
    client->opening = NULL;
    client->content = transaction;
    transaction->piece = 0;
    transaction->offset = 0;
    transaction->line_state = LINE_START;
}

static void on_data_reply(struct smtp_client *client)
{
    struct smtp_transaction *transaction = client->opening;
    if (client->reply.code == 354) {
        if (transaction->accepted > 0) {
            begin_content(client);
            return;
        }
        /* Everybody was refused and the server wants content all the same: an empty one for nobody.
         */
        smtp_client_put(client, SPAN_LIT(".\r\n"));
        owe(client, OWED_EMPTY_DOT, 0);
    } else {
        client->needs_rset = !transaction->mail_refused;
        answer_rest(client, transaction, PHASE_DATA);
    }
    close_opening(client);
}

/* Recipients that were put off go into another round, before anything that waits. */
static void next_round(struct smtp_client *client, struct smtp_transaction *transaction)
{
    for (size_t i = 0; i < transaction->recipient_count; i++) {
        if (transaction->marks[i] == MARK_LATER) {
            transaction->marks[i] = MARK_OPEN;
        }
    }
    transaction->next = client->waiting;
    client->waiting = transaction;
    if (client->waiting_last == NULL) {
        client->waiting_last = transaction;
    }
}

static void on_dot_reply(struct smtp_client *client)
{
    struct smtp_transaction *transaction = client->dot;
    FAILPOINT("smtp-answered");
    client->dot = NULL;
    if (client->reply.code / 100 != 2 || transaction->later == 0) {
        answer_rest(client, transaction, PHASE_DOT);
        smtp_client_complete(client, transaction);
        return;
    }
    for (size_t i = 0; i < transaction->recipient_count; i++) {
        if (transaction->marks[i] == MARK_ACCEPTED) {
            verdict_smtp_answer(client->conf->kind, PHASE_DOT, client->reply.code,
                                smtp_reply_text(&client->reply), &transaction->answers[i]);
            transaction->marks[i] = MARK_ANSWERED;
        }
    }
    next_round(client, transaction);
}

/* Which first digits a reply may have. */
static bool reply_fits(enum smtp_owed kind, uint32_t code)
{
    switch (kind) {
    case OWED_DATA:
        return code == 354 || code >= 400;
    case OWED_MAIL:
    case OWED_RCPT:
    case OWED_DOT:
        return code / 100 != 3;
    case OWED_RSET:
    case OWED_EMPTY_DOT:
        return true;
    }
    UNREACHABLE();
}

void smtp_client_send_reply(struct smtp_client *client)
{
    if (client->owed_count == 0) {
        /* "421 idle too long", "451 4.7.0 Timeout waiting for client input": the server takes its
         * leave. */
        smtp_client_end_refused(client, PHASE_CONNECT);
        return;
    }
    struct smtp_owed_reply owed = client->owed[client->owed_first];
    client->owed_first = (client->owed_first + 1) % OWED_MAX;
    client->owed_count--;
    uint32_t code = client->reply.code;
    if (!reply_fits((enum smtp_owed)owed.kind, code)) {
        smtp_client_end_protocol(client); /* an unanswered dot ends as unknown */
        return;
    }
    if (code == 421 && owed.kind != OWED_DOT) {
        smtp_client_end_refused(client, PHASE_CONNECT);
        return;
    }
    switch ((enum smtp_owed)owed.kind) {
    case OWED_MAIL:
        on_mail_reply(client);
        break;
    case OWED_RCPT:
        on_rcpt_reply(client, owed.recipient);
        break;
    case OWED_DATA:
        on_data_reply(client);
        break;
    case OWED_DOT:
        on_dot_reply(client);
        break;
    case OWED_RSET:
    case OWED_EMPTY_DOT:
        break;
    }
    if (code == 421) {
        smtp_client_end_refused(client, PHASE_CONNECT);
    }
}
