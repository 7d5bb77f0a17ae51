/* The mail transaction: MAIL, RCPT, DATA. */
#include "gateway/smtp_machine.h"

#include "gateway/base/codec.h"
#include "queue/fields.h"

/* A refused message is read to its end so that the peer sees the reply, but not for ever. */
#define DROP_EXTRA_BYTES ((uint64_t)1 << 20)

void smtp_end_transaction(struct smtp *m)
{
    if (m->state == STATE_DATA) {
        m->state = STATE_COMMAND;
    }
    smtp_data_release(&m->data);
    mem_free(m->transaction.recipients);
    m->transaction = (struct smtp_transaction){0};
    m->recipient_room = 0;
    m->recipients_refused = 0;
    arena_release(&m->arena);
    m->in_transaction = false;
    m->mail_refused = false;
}

/* ---- MAIL, RCPT ---- */

/* Takes "FROM:" or "TO:" off the front. */
static bool take_keyword(struct span *args, struct span keyword)
{
    if (!span_istarts(*args, keyword)) {
        return false;
    }
    args->data += keyword.len;
    args->len -= keyword.len;
    return true;
}

/* A parameter RFC 5321 4.1.1.11 does not let us pass over. */
static void complain_parameters(struct smtp *m, struct buf *out, int rc)
{
    if (rc == ERR_UNSUPPORTED) {
        COMPLAIN(m, out, "555 5.5.4 Parameter not recognised or not supported");
    } else {
        COMPLAIN(m, out, "501 5.5.4 Bad parameter");
    }
}

static void start_transaction(struct smtp *m, struct span path,
                              const struct smtp_mail_parameters *parameters, struct buf *out)
{
    struct span kept = arena_dup(&m->arena, path);
    if (kept.data == NULL) {
        m->mail_refused = true;
        m->mail_put_off = true;
        REPLY(m, out, "452 4.3.1 Out of memory, try again later");
        return;
    }
    m->transaction = (struct smtp_transaction){
        .reverse_path = kept,
        .declared_bytes = parameters->size_bytes,
        .body_8bit = parameters->body_8bit,
        .smtputf8 = parameters->smtputf8,
    };
    m->asked = SMTP_EVENT_MAIL;
}

void smtp_do_mail(struct smtp *m, struct span args, struct buf *out)
{
    struct span path;
    struct smtp_mail_parameters parameters = {0};
    if (!m->greeted) {
        COMPLAIN(m, out, "503 5.5.1 Say EHLO first");
        return;
    }
    if (m->in_transaction) {
        COMPLAIN(m, out, "503 5.5.1 A mail transaction is open already");
        return;
    }
    m->mail_refused = true; /* until it is accepted */
    m->mail_put_off = false;
    if (!take_keyword(&args, SPAN_LIT("FROM:")) || smtp_take_path(&args, &path) != ERR_OK) {
        COMPLAIN(m, out, "501 5.5.4 Syntax: MAIL FROM:<address> [parameters]");
        return;
    }
    int rc = smtp_parse_mail(args, &parameters);
    if (rc != ERR_OK) {
        complain_parameters(m, out, rc);
    } else if (path.len > 0 && !address_valid(path, true)) {
        COMPLAIN(m, out, "501 5.1.7 Bad sender address syntax");
    } else if (codec_has_8bit(path) && !parameters.smtputf8) {
        REPLY(m, out, "553 5.6.7 A sender address like this needs the parameter SMTPUTF8");
    } else if (parameters.size_bytes > m->conf->max_message_bytes) {
        REPLY(m, out, "552 5.3.4 The message is larger than this server takes");
    } else {
        start_transaction(m, path, &parameters, out);
    }
}

/* Refusals are no errors of the peer, but nobody may go on for ever with them. */
static void count_refused_recipient(struct smtp *m)
{
    m->recipients_refused++;
    if (m->recipients_refused > m->conf->max_recipients) {
        m->idle_commands++;
    }
}

/* Room for one more in the list. */
static bool reserve_recipient(struct smtp *m)
{
    struct smtp_transaction *t = &m->transaction;
    if (t->recipient_count < m->recipient_room) {
        return true;
    }
    size_t room = m->recipient_room > 0 ? m->recipient_room * 2 : 4;
    struct span *grown = mem_realloc_try(t->recipients, room * sizeof *grown);
    if (grown == NULL) {
        return false;
    }
    t->recipients = grown;
    m->recipient_room = room;
    return true;
}

static void out_of_sequence(struct smtp *m, struct buf *out, struct span words)
{
    if (m->mail_refused && m->mail_put_off) {
        REPLY(m, out, "451 4.3.0 MAIL was put off, try again later");
    } else if (m->mail_refused) {
        smtp_reply(m, out, words);
    } else {
        smtp_complain(m, out, words);
    }
}

void smtp_do_rcpt(struct smtp *m, struct span args, struct buf *out)
{
    struct span path;
    if (!m->in_transaction) {
        m->idle_commands++;
        out_of_sequence(m, out, SPAN_LIT("503 5.5.1 MAIL first\r\n"));
        return;
    }
    if (!take_keyword(&args, SPAN_LIT("TO:")) || smtp_take_path(&args, &path) != ERR_OK) {
        COMPLAIN(m, out, "501 5.5.4 Syntax: RCPT TO:<address>");
    } else if (args.len > 0) {
        complain_parameters(m, out, ERR_UNSUPPORTED);
    } else if (!address_valid(path, true)) {
        count_refused_recipient(m);
        REPLY(m, out, "501 5.1.3 Bad recipient address syntax");
    } else if (codec_has_8bit(path) && !m->transaction.smtputf8) {
        count_refused_recipient(m);
        REPLY(m, out, "553 5.6.7 An address like this needs SMTPUTF8 at MAIL");
    } else if (m->transaction.recipient_count >= m->conf->max_recipients) {
        count_refused_recipient(m);
        REPLY(m, out, "452 4.5.3 Too many recipients; send the others in another message");
    } else {
        m->transaction.candidate = path;
        m->asked = SMTP_EVENT_RCPT;
    }
}

static void keep_recipient(struct smtp *m, struct buf *out)
{
    struct span kept = {0};
    if (reserve_recipient(m)) {
        kept = arena_dup(&m->arena, m->transaction.candidate);
    }
    if (kept.data == NULL) {
        REPLY(m, out, "452 4.3.1 Out of memory, try again later");
        return;
    }
    m->transaction.recipients[m->transaction.recipient_count++] = kept;
    REPLY(m, out, "250 2.1.5 Recipient ok");
}

/* ---- DATA ---- */

void smtp_do_data(struct smtp *m, struct span args, struct buf *out)
{
    if (args.len > 0) {
        COMPLAIN(m, out, "501 5.5.4 DATA takes no argument");
    } else if (!m->in_transaction) {
        out_of_sequence(m, out, SPAN_LIT("503 5.5.1 MAIL and RCPT first\r\n"));
    } else if (m->transaction.recipient_count == 0 && m->recipients_refused > 0) {
        REPLY(m, out, "554 5.5.1 No valid recipients");
    } else if (m->transaction.recipient_count == 0) {
        COMPLAIN(m, out, "503 5.5.1 RCPT first");
    } else {
        m->asked = SMTP_EVENT_DATA;
    }
}

void smtp_begin_data(struct smtp *m, struct buf *out)
{
    smtp_data_init(&m->data, m->conf->max_message_bytes, m->transaction.declared_bytes,
                   m->conf->repair_line_endings);
    m->state = STATE_DATA;
    REPLY(m, out, "354 End data with <CR><LF>.<CR><LF>");
}

void smtp_reply_defect(struct smtp *m, struct buf *out)
{
    switch (m->data.defect) {
    case SMTP_DEFECT_NONE:
        UNREACHABLE();
    case SMTP_DEFECT_LINE_END:
        REPLY(m, out, "550 5.6.11 A bare CR or bare LF is not allowed; lines end in <CR><LF>");
        break;
    case SMTP_DEFECT_NUL:
        REPLY(m, out, "554 5.6.0 The message holds a NUL byte");
        break;
    case SMTP_DEFECT_TOO_LARGE:
        REPLY(m, out, "552 5.3.4 The message is larger than this server takes");
        break;
    case SMTP_DEFECT_NO_MEMORY:
        REPLY(m, out, "452 4.3.1 Out of memory, try again later");
        break;
    case SMTP_DEFECT_OWNER:
        smtp_reply_words(m, out, m->data_refusal.code, m->data_refusal.enhanced,
                         m->data_refusal.text);
        break;
    }
}

static void finish_data(struct smtp *m, struct buf *out)
{
    m->state = STATE_COMMAND;
    if (m->data.defect != SMTP_DEFECT_NONE) {
        smtp_reply_defect(m, out);
        smtp_end_transaction(m);
        return;
    }
    m->transaction.message = buf_span(&m->data.body);
    m->asked = SMTP_EVENT_MESSAGE;
}

/* False: more bytes are needed. */
bool smtp_advance_data(struct smtp *m, struct span *bytes, struct buf *out)
{
    bool end = false;
    size_t used = smtp_data_take(&m->data, *bytes, &end);
    *bytes = span_make(bytes->data + used, bytes->len - used);
    if (end) {
        finish_data(m, out);
        return true;
    }
    uint64_t patience = 2 * (uint64_t)m->conf->max_message_bytes + DROP_EXTRA_BYTES;
    if (m->data.defect != SMTP_DEFECT_NONE && m->data.received_bytes > patience) {
        smtp_reply_defect(m, out);
        smtp_close(m, "too_large");
    }
    return false;
}

void smtp_refuse_data(struct smtp *m, const struct smtp_reply *refusal)
{
    ASSERT(m->state == STATE_DATA);
    if (m->data.defect == SMTP_DEFECT_NONE) {
        m->data_refusal = *refusal;
        smtp_data_spoil(&m->data, SMTP_DEFECT_OWNER);
    }
}

void smtp_answer_mail(struct smtp *m, bool yes, struct buf *out)
{
    if (!yes) {
        smtp_end_transaction(m);
        m->mail_refused = true;
        return;
    }
    m->mail_refused = false;
    m->in_transaction = true;
    REPLY(m, out, "250 2.1.0 Sender ok");
}

void smtp_answer_rcpt(struct smtp *m, bool yes, struct buf *out)
{
    if (yes) {
        keep_recipient(m, out);
    } else {
        count_refused_recipient(m);
    }
    m->transaction.candidate = (struct span){0};
}

void smtp_answer_message(struct smtp *m, bool yes, bool worded, struct buf *out)
{
    if (yes) {
        m->counts.messages++;
        m->idle_commands = 0;
        if (!worded) {
            REPLY(m, out, "250 2.0.0 Ok");
        }
    }
    smtp_end_transaction(m);
}
