#include "backends/smtp_client.h"

#include "backends/smtp_reply.h"
#include "gateway/base/codec.h"

#include <assert.h>
#include <stdio.h>

/* Invariants:
 *
 *  - `owed` lists, in order, what each reply still to come answers. Replies never come without one,
 * except that a server may take its leave at any time.
 *  - A transaction is in exactly one of: the waiting list, `opening` (its commands are being sent
 * or answered), `content` (its content is being written), `dot` (its final dot is written and
 * unanswered). `load` counts them all.
 *  - Content follows an empty `owed`: DATA is the last command of a group, and its 354 the last
 * reply.
 *  - Callbacks run with `inside` set, so that what they give is taken up by the pump that is
 * running or follows. */

enum state {
    STATE_GREETING,
    STATE_EHLO,
    STATE_HELO,
    STATE_STARTTLS,
    STATE_TLS, /* handshake under way */
    STATE_AUTH_LOGIN,
    STATE_AUTH_USER,
    STATE_AUTH_FINAL,
    STATE_READY,
    STATE_QUIT,
    STATE_ENDED,
};

enum owed {
    OWED_RSET,
    OWED_MAIL,
    OWED_RCPT,
    OWED_DATA,
    OWED_DOT,
    OWED_EMPTY_DOT, /* of a message that nobody was to get */
};

/* The last dot, RSET, MAIL, DATA, and the recipients. */
#define OWED_MAX (BATCH_RECIPIENTS_MAX + 6)
/* RFC 5321 4.5.3.1.4 allows 512 bytes a command, extensions add to it; BATCH_RECIPIENTS_MAX of them
 * and some. */
#define OUT_MAX ((size_t)64 * 1024)
/* How much content is written before congestion is asked about again. */
#define CHUNK_BYTES ((size_t)64 * 1024)

struct owed_reply {
    uint8_t kind; /* enum owed */
    uint8_t recipient;
};

enum mark {
    MARK_OPEN,
    MARK_ACCEPTED,
    MARK_LATER,
    MARK_ANSWERED,
};

/* Where in a line the content stands, for dot-stuffing across chunks. */
enum line_state {
    LINE_START, /* after CR LF, or nothing written yet */
    LINE_INSIDE,
    LINE_AFTER_CR,
};

struct smtp_client {
    const struct smtp_client_conf *conf;
    const struct smtp_client_ops *ops;
    void *ctx;
    enum state state;
    bool tls;
    bool was_ready;
    bool quitting;
    bool inside;
    bool needs_rset; /* the server still holds a transaction that came to nothing */
    unsigned extensions;
    uint64_t size_limit; /* of the server; 0: none said */
    struct smtp_reply reply;
    struct buf out; /* commands of this turn */
    struct owed_reply owed[OWED_MAX];
    size_t owed_first;
    size_t owed_count;
    struct smtp_transaction *waiting;
    struct smtp_transaction *waiting_last;
    struct smtp_transaction *opening;
    struct smtp_transaction *content;
    struct smtp_transaction *dot;
    size_t load;
    struct answer reason;
};

/* ---- Ends ---- */

static void complete(struct smtp_client *client, struct smtp_transaction *transaction)
{
    ASSERT(client->load > 0);
    client->load--;
    transaction->next = NULL;
    client->ops->on_done(client->ctx, transaction);
}

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

/* Ends a transaction with its session. Recipients put off to a later round were not in the content.
 */
static void lose(struct smtp_client *client, struct smtp_transaction *transaction, bool dot_written)
{
    for (size_t i = 0; i < transaction->recipient_count; i++) {
        if (transaction->marks[i] == MARK_ANSWERED) {
            continue;
        }
        bool unknown = dot_written && transaction->marks[i] == MARK_ACCEPTED;
        verdict_own_answer(unknown ? VERDICT_UNKNOWN : VERDICT_TRANSIENT, client->reason.text,
                           &transaction->answers[i]);
        transaction->answers[i].code = client->reason.code;
    }
    transaction->untried = !transaction->started;
    complete(client, transaction);
}

static struct smtp_transaction *waiting_take(struct smtp_client *client)
{
    struct smtp_transaction *transaction = client->waiting;
    if (transaction != NULL) {
        client->waiting = transaction->next;
        if (client->waiting == NULL) {
            client->waiting_last = NULL;
        }
        transaction->next = NULL;
    }
    return transaction;
}

/* The session is over; client->reason says why. */
static void end_session(struct smtp_client *client)
{
    if (client->state == STATE_ENDED) {
        return;
    }
    client->state = STATE_ENDED;
    buf_release(&client->out);
    struct smtp_transaction *dot = client->dot;
    struct smtp_transaction *others[] = {client->content, client->opening};
    client->dot = NULL;
    client->content = NULL;
    client->opening = NULL;
    if (dot != NULL) {
        lose(client, dot, true);
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        if (others[i] != NULL) {
            lose(client, others[i], false);
        }
    }
    for (struct smtp_transaction *t = waiting_take(client); t != NULL; t = waiting_take(client)) {
        lose(client, t, false);
    }
    ASSERT(client->load == 0);
    client->ops->on_end(client->ctx);
}

static void end_own(struct smtp_client *client, enum verdict verdict, const char *text)
{
    if (client->state == STATE_ENDED) {
        return;
    }
    verdict_own_answer(verdict, text, &client->reason);
    if (verdict == VERDICT_CONFIG) {
        client->reason.scope = SCOPE_BACKEND;
    }
    end_session(client);
}

/* Ends with the reply just read. */
static void end_refused(struct smtp_client *client, enum verdict_phase phase)
{
    if (client->state == STATE_ENDED) {
        return;
    }
    verdict_smtp_answer(client->conf->kind, phase, client->reply.code,
                        smtp_reply_text(&client->reply), &client->reason);
    if (client->reply.code < 400) {
        client->reason.verdict = VERDICT_TRANSIENT; /* a yes where none belongs */
    }
    end_session(client);
}

static void end_protocol(struct smtp_client *client)
{
    end_own(client, VERDICT_TRANSIENT, "The server broke the SMTP protocol.");
}

/* ---- Output ---- */

static void flush(struct smtp_client *client)
{
    if (client->state == STATE_ENDED || buf_len(&client->out) == 0) {
        return;
    }
    int rc = client->ops->write(client->ctx, buf_span(&client->out));
    if (client->load == 0) {
        buf_release(&client->out); /* idle sessions hold no buffers */
    } else {
        buf_reset(&client->out);
    }
    if (rc != 0) {
        end_own(client, VERDICT_TRANSIENT, "The connection failed while it was written to.");
    }
}

static void put(struct smtp_client *client, struct span bytes)
{
    if (client->state != STATE_ENDED && buf_append(&client->out, bytes) != 0) {
        end_own(client, VERDICT_TRANSIENT, "There is no memory for a command.");
    }
}

static void owe(struct smtp_client *client, enum owed kind, size_t recipient)
{
    ASSERT(client->owed_count < OWED_MAX);
    client->owed[(client->owed_first + client->owed_count) % OWED_MAX] = (struct owed_reply){
        .kind = (uint8_t)kind, .recipient = (uint8_t)recipient};
    client->owed_count++;
}

/* ---- Content ---- */

static enum line_state line_state_after(enum line_state before, struct span bytes)
{
    char last = bytes.data[bytes.len - 1];
    if (last == '\r') {
        return LINE_AFTER_CR;
    }
    bool after_cr = bytes.len > 1 ? bytes.data[bytes.len - 2] == '\r' : before == LINE_AFTER_CR;
    return last == '\n' && after_cr ? LINE_START : LINE_INSIDE;
}

static bool starts_line(struct span bytes, size_t at, enum line_state before)
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
        if (starts_line(bytes, at, (enum line_state)transaction->line_state)) {
            /* Up to and with this dot; the next run begins with it once more. */
            int rc = client->ops->write(client->ctx, span_make(bytes.data + start, at + 1 - start));
            if (rc != 0) {
                return rc;
            }
            start = at;
        }
        at++;
    }
    transaction->line_state = (uint8_t)line_state_after((enum line_state)transaction->line_state,
                                                        bytes);
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
        end_own(client, VERDICT_TRANSIENT, "The connection failed while it was written to.");
        return false;
    }
    client->content = NULL;
    client->dot = transaction;
    owe(client, OWED_DOT, 0);
    return true;
}

/* ---- Opening a transaction ---- */

static bool pipelines(const struct smtp_client *client)
{
    return (client->extensions & SMTP_EXT_PIPELINING) != 0;
}

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
    put(client, SPAN_LIT("MAIL FROM:<"));
    put(client, transaction->reverse_path);
    put(client, SPAN_LIT(">"));
    if ((client->extensions & SMTP_EXT_SIZE) != 0) {
        char size[40];
        (void)snprintf(size, sizeof size, " SIZE=%zu", content_bytes(transaction));
        put(client, span_of(size));
    }
    if (transaction->needs_8bitmime) {
        put(client, SPAN_LIT(" BODY=8BITMIME"));
    }
    if (needs_smtputf8(transaction)) {
        put(client, SPAN_LIT(" SMTPUTF8"));
    }
    put(client, SPAN_LIT("\r\n"));
    owe(client, OWED_MAIL, 0);
}

static void send_rcpt(struct smtp_client *client, const struct smtp_transaction *transaction,
                      size_t index)
{
    put(client, SPAN_LIT("RCPT TO:<"));
    put(client, transaction->recipients[index]);
    put(client, SPAN_LIT(">\r\n"));
    owe(client, OWED_RCPT, index);
}

/* Sends the next command of the opening transaction; false when all are sent. */
static bool send_command(struct smtp_client *client, struct smtp_transaction *transaction)
{
    size_t count = transaction->recipient_count;
    if (transaction->next_command == 0) {
        if (client->needs_rset) {
            put(client, SPAN_LIT("RSET\r\n"));
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
        put(client, SPAN_LIT("DATA\r\n"));
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
    complete(client, transaction);
}

/* Sends what may be sent of the opening transaction now. False when replies must come first. */
static bool opening_step(struct smtp_client *client)
{
    struct smtp_transaction *transaction = client->opening;
    if (pipelines(client)) {
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
    struct smtp_transaction *transaction = waiting_take(client);
    transaction->accepted = 0;
    transaction->later = 0;
    transaction->next_command = 0;
    transaction->mail_refused = false;
    if (preflight(client, transaction)) {
        client->opening = transaction;
    } else {
        complete(client, transaction);
    }
}

/* ---- The pump ---- */

static bool may_open(const struct smtp_client *client)
{
    return client->waiting != NULL &&
           (pipelines(client) || (client->dot == NULL && client->owed_count == 0));
}

static void say_quit(struct smtp_client *client)
{
    client->state = STATE_QUIT;
    put(client, SPAN_LIT("QUIT\r\n"));
}

static void pump(struct smtp_client *client)
{
    client->inside = true;
    bool go_on = true;
    while (go_on && client->state == STATE_READY) {
        if (client->content != NULL) {
            flush(client);
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
    flush(client);
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
            end_own(client, VERDICT_TRANSIENT, "The session was left before any content.");
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
        put(client, SPAN_LIT(".\r\n"));
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
    client->dot = NULL;
    if (client->reply.code / 100 != 2 || transaction->later == 0) {
        answer_rest(client, transaction, PHASE_DOT);
        complete(client, transaction);
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
static bool reply_fits(enum owed kind, uint32_t code)
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

static void on_ready_reply(struct smtp_client *client)
{
    if (client->owed_count == 0) {
        /* "421 idle too long", "451 4.7.0 Timeout waiting for client input": the server takes its
         * leave. */
        end_refused(client, PHASE_CONNECT);
        return;
    }
    struct owed_reply owed = client->owed[client->owed_first];
    client->owed_first = (client->owed_first + 1) % OWED_MAX;
    client->owed_count--;
    uint32_t code = client->reply.code;
    if (!reply_fits((enum owed)owed.kind, code)) {
        end_protocol(client); /* an unanswered dot ends as unknown */
        return;
    }
    if (code == 421 && owed.kind != OWED_DOT) {
        end_refused(client, PHASE_CONNECT);
        return;
    }
    switch ((enum owed)owed.kind) {
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
        end_refused(client, PHASE_CONNECT);
    }
}

/* ---- Setting up the session ---- */

static void send_hello(struct smtp_client *client, enum state state)
{
    client->extensions = 0;
    client->size_limit = 0;
    client->state = state;
    put(client, state == STATE_EHLO ? SPAN_LIT("EHLO ") : SPAN_LIT("HELO "));
    put(client, span_of(client->conf->hostname));
    put(client, SPAN_LIT("\r\n"));
}

static void become_ready(struct smtp_client *client)
{
    client->state = STATE_READY;
    client->was_ready = true;
    client->ops->on_ready(client->ctx);
}

/* Writes a line that holds a secret without leaving copies of ours behind. */
static void put_secret(struct smtp_client *client, struct span prefix, struct span secret)
{
    struct buf line;
    buf_init_secret(&line, 4096);
    int rc = buf_append(&line, prefix);
    if (rc == 0) {
        rc = codec_base64_encode(secret, 0, &line);
    }
    if (rc == 0) {
        rc = buf_append(&line, SPAN_LIT("\r\n"));
    }
    if (rc == 0) {
        rc = client->ops->write(client->ctx, buf_span(&line));
    }
    buf_release(&line);
    if (rc != 0) {
        end_own(client, VERDICT_TRANSIENT, "The sign-in could not be written.");
    }
}

/* RFC 4616: authorization identity (empty), user, password, with NUL between. */
static void send_plain(struct smtp_client *client)
{
    struct buf message;
    buf_init_secret(&message, 2048);
    int rc = buf_append_byte(&message, '\0');
    if (rc == 0) {
        rc = buf_append(&message, span_of(client->conf->user));
    }
    if (rc == 0) {
        rc = buf_append_byte(&message, '\0');
    }
    if (rc == 0) {
        rc = buf_append(&message, span_of(client->conf->password));
    }
    client->state = STATE_AUTH_FINAL;
    if (rc == 0) {
        put_secret(client, SPAN_LIT("AUTH PLAIN "), buf_span(&message));
    } else {
        end_own(client, VERDICT_CONFIG, "The user name or password is too long for AUTH PLAIN.");
    }
    buf_release(&message);
}

static void sign_in(struct smtp_client *client)
{
    if (client->conf->user == NULL) {
        become_ready(client);
        return;
    }
    if (client->conf->password_needs_tls && !client->tls) {
        end_own(client, VERDICT_CONFIG,
                "The server did not offer STARTTLS, and the password is not sent without it.");
        return;
    }
    bool login = (client->extensions & SMTP_EXT_AUTH_LOGIN) != 0;
    bool plain = (client->extensions & SMTP_EXT_AUTH_PLAIN) != 0;
    if (plain && !(login && client->conf->prefer_login)) {
        send_plain(client);
    } else if (login) {
        client->state = STATE_AUTH_LOGIN;
        put(client, SPAN_LIT("AUTH LOGIN\r\n"));
    } else {
        end_own(client, VERDICT_CONFIG, "The server offers neither AUTH LOGIN nor AUTH PLAIN.");
    }
}

static void after_hello(struct smtp_client *client)
{
    enum smtp_starttls wanted = client->conf->starttls;
    if (client->tls || wanted == SMTP_STARTTLS_NEVER) {
        sign_in(client);
    } else if ((client->extensions & SMTP_EXT_STARTTLS) != 0) {
        client->state = STATE_STARTTLS;
        put(client, SPAN_LIT("STARTTLS\r\n"));
    } else if (wanted == SMTP_STARTTLS_REQUIRED) {
        end_own(client, VERDICT_CONFIG, "The server does not offer STARTTLS.");
    } else {
        sign_in(client);
    }
}

static void parse_auth(struct smtp_client *client, struct span mechanisms)
{
    while (mechanisms.len > 0) {
        struct span name = span_cut(&mechanisms, ' ');
        if (span_ieq(name, SPAN_LIT("LOGIN"))) {
            client->extensions |= SMTP_EXT_AUTH_LOGIN;
        } else if (span_ieq(name, SPAN_LIT("PLAIN"))) {
            client->extensions |= SMTP_EXT_AUTH_PLAIN;
        }
    }
}

static void parse_extension(struct smtp_client *client, struct span line)
{
    static const struct {
        const char *keyword;
        unsigned bit;
    } keywords[] = {
        {"PIPELINING", SMTP_EXT_PIPELINING}, {"SIZE", SMTP_EXT_SIZE},
        {"8BITMIME", SMTP_EXT_8BITMIME},     {"SMTPUTF8", SMTP_EXT_SMTPUTF8},
        {"STARTTLS", SMTP_EXT_STARTTLS},     {"DSN", SMTP_EXT_DSN},
        {"CHUNKING", SMTP_EXT_CHUNKING},     {"ENHANCEDSTATUSCODES", SMTP_EXT_ENHANCEDSTATUSCODES},
    };
    struct span rest = span_trim(line);
    if (span_istarts(rest, SPAN_LIT("AUTH="))) {
        parse_auth(client, span_make(rest.data + 5, rest.len - 5)); /* a form before RFC 2554 */
        return;
    }
    struct span keyword = span_cut(&rest, ' ');
    if (span_ieq(keyword, SPAN_LIT("AUTH"))) {
        parse_auth(client, rest);
        return;
    }
    for (size_t i = 0; i < sizeof keywords / sizeof *keywords; i++) {
        if (span_ieq(keyword, span_of(keywords[i].keyword))) {
            client->extensions |= keywords[i].bit;
        }
    }
    if (span_ieq(keyword, SPAN_LIT("SIZE")) &&
        span_to_u64(span_trim(rest), UINT64_MAX / 2, &client->size_limit) != 0) {
        client->size_limit = 0; /* "SIZE" alone, or nonsense: no limit was said */
    }
}

static void on_starttls_reply(struct smtp_client *client)
{
    if (client->reply.code == 220) {
        client->state = STATE_TLS;
        flush(client);
        client->ops->on_start_tls(client->ctx);
    } else if (client->conf->starttls == SMTP_STARTTLS_OFFERED && client->reply.code != 421) {
        sign_in(client);
    } else {
        end_refused(client, PHASE_CONNECT);
    }
}

static void on_login_reply(struct smtp_client *client, const char *secret, enum state next)
{
    if (client->reply.code != 334) {
        end_refused(client, PHASE_AUTH);
        return;
    }
    client->state = next;
    put_secret(client, SPAN_LIT(""), span_of(secret));
}

static void on_hello_reply(struct smtp_client *client)
{
    if (client->reply.code == 250) {
        after_hello(client);
    } else if (client->state == STATE_EHLO && client->reply.code >= 500) {
        send_hello(client, STATE_HELO); /* RFC 5321 3.2: an old server */
    } else {
        end_refused(client, PHASE_CONNECT);
    }
}

static void on_reply(struct smtp_client *client)
{
    switch (client->state) {
    case STATE_GREETING:
        if (client->reply.code == 220) {
            send_hello(client, STATE_EHLO);
        } else {
            end_refused(client, PHASE_CONNECT);
        }
        break;
    case STATE_EHLO:
    case STATE_HELO:
        on_hello_reply(client);
        break;
    case STATE_STARTTLS:
        on_starttls_reply(client);
        break;
    case STATE_AUTH_LOGIN:
        on_login_reply(client, client->conf->user, STATE_AUTH_USER);
        break;
    case STATE_AUTH_USER:
        on_login_reply(client, client->conf->password, STATE_AUTH_FINAL);
        break;
    case STATE_AUTH_FINAL:
        if (client->reply.code == 235) {
            become_ready(client);
        } else {
            end_refused(client, PHASE_AUTH);
        }
        break;
    case STATE_READY:
        on_ready_reply(client);
        break;
    case STATE_QUIT:
        end_own(client, VERDICT_DELIVERED, "The session was ended by QUIT.");
        break;
    case STATE_TLS:
    case STATE_ENDED:
        UNREACHABLE(); /* feed takes nothing in these */
    }
}

/* ---- The outside ---- */

struct smtp_client *smtp_client_new(const struct smtp_client_conf *conf,
                                    const struct smtp_client_ops *ops, void *ctx)
{
    static_assert(BATCH_RECIPIENTS_MAX < 250, "recipient indexes fit a byte");
    struct smtp_client *client = mem_zero(sizeof *client);
    client->conf = conf;
    client->ops = ops;
    client->ctx = ctx;
    client->state = STATE_GREETING;
    client->tls = conf->tls_already;
    buf_init(&client->out, OUT_MAX);
    return client;
}

void smtp_client_free(struct smtp_client **client)
{
    if (*client == NULL) {
        return;
    }
    ASSERT((*client)->load == 0 && !(*client)->inside);
    buf_release(&(*client)->out);
    mem_free(*client);
    *client = NULL;
}

size_t smtp_client_feed(struct smtp_client *client, struct span bytes)
{
    struct span rest = bytes;
    client->inside = true;
    while (client->state != STATE_ENDED && client->state != STATE_TLS) {
        struct span line;
        if (client->reply.lines == 0) {
            smtp_reply_reset(&client->reply);
        }
        int step = smtp_reply_step(&client->reply, &rest, &line);
        if (step == SMTP_REPLY_NEED) {
            break;
        }
        if (step < 0) {
            end_protocol(client);
            break;
        }
        /* The first line of an EHLO reply is the server's name. */
        if (client->state == STATE_EHLO && client->reply.code == 250 && client->reply.lines > 1) {
            parse_extension(client, line);
        }
        if (step == SMTP_REPLY_LAST) {
            on_reply(client);
            client->reply.lines = 0;
        }
    }
    client->inside = false;
    pump(client);
    return client->state == STATE_ENDED || client->state == STATE_TLS ? bytes.len
                                                                      : bytes.len - rest.len;
}

void smtp_client_tls_done(struct smtp_client *client)
{
    if (client->state != STATE_TLS) {
        return; /* lost in between */
    }
    client->tls = true;
    send_hello(client, STATE_EHLO);
    flush(client);
}

void smtp_client_give(struct smtp_client *client, struct smtp_transaction *transaction)
{
    ASSERT(smtp_client_room(client) > 0);
    ASSERT(transaction->recipient_count > 0 &&
           transaction->recipient_count <= BATCH_RECIPIENTS_MAX);
    transaction->next = NULL;
    if (client->waiting_last != NULL) {
        client->waiting_last->next = transaction;
    } else {
        client->waiting = transaction;
    }
    client->waiting_last = transaction;
    client->load++;
    if (!client->inside) {
        pump(client);
    }
}

void smtp_client_pump(struct smtp_client *client)
{
    if (!client->inside) {
        pump(client);
    }
}

void smtp_client_quit(struct smtp_client *client)
{
    client->quitting = true;
    if (client->state != STATE_READY && client->state != STATE_QUIT &&
        client->state != STATE_ENDED) {
        end_own(client, VERDICT_DELIVERED, "The session was not needed any more.");
    } else {
        smtp_client_pump(client);
    }
}

void smtp_client_lost(struct smtp_client *client, const char *why)
{
    end_own(client, client->state == STATE_QUIT ? VERDICT_DELIVERED : VERDICT_TRANSIENT, why);
}

size_t smtp_client_room(const struct smtp_client *client)
{
    size_t window = pipelines(client) ? 2 : 1;
    if (client->state != STATE_READY || client->quitting || client->load >= window) {
        return 0;
    }
    return window - client->load;
}

size_t smtp_client_load(const struct smtp_client *client)
{
    return client->load;
}

bool smtp_client_was_ready(const struct smtp_client *client)
{
    return client->was_ready;
}

bool smtp_client_ended(const struct smtp_client *client)
{
    return client->state == STATE_ENDED;
}

unsigned smtp_client_extensions(const struct smtp_client *client)
{
    return client->extensions;
}

const struct answer *smtp_client_reason(const struct smtp_client *client)
{
    return &client->reason;
}

/* RFC 5321 4.5.3.2, and the configured ceiling. */
static int64_t patience(const struct smtp_client *client, int64_t standard_ms)
{
    int64_t ceiling_ms = client->conf->reply_timeout_ms;
    return ceiling_ms > 0 && ceiling_ms < standard_ms ? ceiling_ms : standard_ms;
}

static int64_t ready_wait_ms(const struct smtp_client *client)
{
    if (client->owed_count == 0) {
        return client->content != NULL ? patience(client, 180000) : 0;
    }
    switch ((enum owed)client->owed[client->owed_first].kind) {
    case OWED_MAIL:
    case OWED_RCPT:
    case OWED_RSET:
        return patience(client, 300000);
    case OWED_DATA:
        return patience(client, 120000);
    case OWED_DOT:
    case OWED_EMPTY_DOT:
        return client->conf->reply_timeout_ms > 0 ? client->conf->reply_timeout_ms : 600000;
    }
    UNREACHABLE();
}

int64_t smtp_client_wait_ms(const struct smtp_client *client)
{
    switch (client->state) {
    case STATE_READY:
        return ready_wait_ms(client);
    case STATE_QUIT:
        return patience(client, 5000); /* nothing depends on the answer */
    case STATE_ENDED:
        return 0;
    case STATE_GREETING:
    case STATE_EHLO:
    case STATE_HELO:
    case STATE_STARTTLS:
    case STATE_TLS:
    case STATE_AUTH_LOGIN:
    case STATE_AUTH_USER:
    case STATE_AUTH_FINAL:
        return patience(client, 300000);
    }
    UNREACHABLE();
}
