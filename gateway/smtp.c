/* Lines, the table of verbs, and answers. smtp_advance() cuts lines and hands them to the state the
 * machine is in. */
#include "gateway/smtp.h"

#include "gateway/smtp_machine.h"

#include <stdio.h>

/* Room for as many addresses as are allowed, each at most 320 bytes and rounded up. */
#define ADDRESS_ROOM ((size_t)352)

/* ---- Life ---- */

struct smtp *smtp_new(const struct smtp_conf *conf, bool tls)
{
    struct smtp *m = mem_zero(sizeof *m);
    m->conf = conf;
    m->tls = tls;
    m->end = "";
    arena_init(&m->arena, (conf->max_recipients + 2) * ADDRESS_ROOM);
    buf_init_secret(&m->user, SMTP_AUTH_LINE_MAX);
    buf_init_secret(&m->password, SMTP_AUTH_LINE_MAX);
    return m;
}

void smtp_free(struct smtp **machine)
{
    struct smtp *m = *machine;
    if (m == NULL) {
        return;
    }
    *machine = NULL;
    smtp_end_transaction(m);
    smtp_forget_credentials(m);
    mem_free(m->helo);
    mem_free(m);
}

/* ---- Replies ---- */

void smtp_close(struct smtp *m, const char *end)
{
    if (m->asked != SMTP_EVENT_CLOSE) {
        m->asked = SMTP_EVENT_CLOSE;
        m->end = end;
    }
}

/* One whole reply with its CR LF. */
void smtp_reply(struct smtp *m, struct buf *out, struct span lines)
{
    m->counts.refused += lines.data[0] >= '4';
    if (buf_append(out, lines) != ERR_OK) {
        smtp_close(m, "output");
    }
}

void smtp_reply_words(struct smtp *m, struct buf *out, unsigned code, const char *enhanced,
                      struct span text)
{
    char words[SMTP_REPLY_TEXT_MAX];
    size_t len = text.len < sizeof words ? text.len : sizeof words;
    for (size_t i = 0; i < len; i++) {
        words[i] = text.data[i] >= ' ' && text.data[i] <= '~' ? text.data[i] : '?';
    }
    m->counts.refused += code >= 400;
    if (buf_printf(out, "%u %s %.*s\r\n", code, enhanced, (int)len, words) != ERR_OK) {
        smtp_close(m, "output");
    }
}

/* A 421 names the host (RFC 5321 4.2.3). */
void smtp_reply_closing(struct smtp *m, struct buf *out, const char *enhanced, const char *text,
                        const char *end)
{
    m->counts.refused++;
    if (m->asked == SMTP_EVENT_CLOSE) {
        return;
    }
    smtp_close(m, end);
    if (buf_printf(out, "421 %s %s %s\r\n", enhanced, m->conf->hostname, text) != ERR_OK) {
        m->end = "output";
    }
}

/* An error of the peer: answered, counted, and one too many ends the session. */
void smtp_complain(struct smtp *m, struct buf *out, struct span lines)
{
    smtp_reply(m, out, lines);
    m->errors++;
    if (m->errors >= m->conf->max_errors) {
        smtp_reply_closing(m, out, "4.7.0", "Too many errors", "errors");
    }
}

void smtp_greet(struct smtp *m, struct buf *out)
{
    if (buf_printf(out, "220 %s ESMTP heave\r\n", m->conf->hostname) != ERR_OK) {
        smtp_close(m, "output");
    }
}

void smtp_shut(struct smtp *m, const char *enhanced, const char *text, const char *end,
               struct buf *out)
{
    smtp_reply_closing(m, out, enhanced, text, end);
}

/* ---- EHLO, HELO ---- */

/* The name is used in Received, so that only printable ASCII is kept; devices send names of every
 * kind, and none is worth refusing mail for. */
static bool take_helo(struct smtp *m, struct span name)
{
    if (name.len == 0 || name.len > 255) {
        return false;
    }
    char *helo = mem_dup(name);
    for (size_t i = 0; i < name.len; i++) {
        helo[i] = helo[i] > ' ' && helo[i] <= '~' ? helo[i] : '?';
    }
    mem_free(m->helo);
    m->helo = helo;
    return true;
}

static void do_hello(struct smtp *m, struct span name, bool extended, struct buf *out)
{
    if (!take_helo(m, name)) {
        COMPLAIN(m, out, "501 5.5.4 Say your host name after EHLO or HELO");
        return;
    }
    smtp_end_transaction(m);
    m->greeted = true;
    m->extended = extended;
    const char *host = m->conf->hostname;
    int rc = ERR_OK;
    if (extended) {
        rc = buf_printf(out,
                        "250-%s\r\n250-PIPELINING\r\n250-SIZE %zu\r\n%s%s250-8BITMIME\r\n"
                        "250-ENHANCEDSTATUSCODES\r\n250 SMTPUTF8\r\n",
                        host, m->conf->max_message_bytes,
                        m->conf->offer_starttls && !m->tls ? "250-STARTTLS\r\n" : "",
                        smtp_auth_usable(m) ? "250-AUTH PLAIN LOGIN\r\n" : "");
    } else {
        rc = buf_printf(out, "250 %s\r\n", host);
    }
    if (rc != ERR_OK) {
        smtp_close(m, "output");
    }
}

static void do_ehlo(struct smtp *m, struct span args, struct buf *out)
{
    do_hello(m, args, true, out);
}

static void do_helo(struct smtp *m, struct span args, struct buf *out)
{
    do_hello(m, args, false, out);
}

/* ---- STARTTLS and the small verbs ---- */

static void do_starttls(struct smtp *m, struct span args, struct buf *out)
{
    if (m->tls) {
        COMPLAIN(m, out, "503 5.5.1 TLS is on already");
    } else if (!m->conf->offer_starttls) {
        COMPLAIN(m, out, "502 5.5.1 STARTTLS is not offered here");
    } else if (args.len > 0) {
        COMPLAIN(m, out, "501 5.5.4 STARTTLS takes no argument");
    } else {
        REPLY(m, out, "220 2.0.0 Ready to start TLS");
        if (m->asked == SMTP_EVENT_MORE) {
            m->asked = SMTP_EVENT_STARTTLS;
        }
    }
}

static void do_rset(struct smtp *m, struct span args, struct buf *out)
{
    (void)args;
    smtp_end_transaction(m);
    REPLY(m, out, "250 2.0.0 Ok");
}

static void do_noop(struct smtp *m, struct span args, struct buf *out)
{
    (void)args;
    REPLY(m, out, "250 2.0.0 Ok");
}

static void do_vrfy(struct smtp *m, struct span args, struct buf *out)
{
    if (args.len == 0) {
        COMPLAIN(m, out, "501 5.5.4 Syntax: VRFY address");
        return;
    }
    REPLY(m, out, "252 2.1.5 Cannot verify, but will take a message and attempt delivery");
}

static void do_help(struct smtp *m, struct span args, struct buf *out)
{
    (void)args;
    REPLY(m, out, "214 2.0.0 EHLO HELO MAIL RCPT DATA RSET NOOP VRFY AUTH STARTTLS QUIT");
}

static void do_quit(struct smtp *m, struct span args, struct buf *out)
{
    (void)args;
    smtp_end_transaction(m);
    REPLY(m, out, "221 2.0.0 Bye");
    smtp_close(m, "quit");
}

static void do_refused(struct smtp *m, struct span args, struct buf *out)
{
    (void)args;
    COMPLAIN(m, out, "502 5.5.1 Command not implemented");
}

/* A browser made to talk to us carries somebody else's words: nothing of it is listened to. */
static void do_http(struct smtp *m, struct span args, struct buf *out)
{
    (void)args;
    smtp_reply_closing(m, out, "4.7.0", "This is an SMTP server", "not_smtp");
}

static const struct {
    struct span verb;
    void (*run)(struct smtp *m, struct span args, struct buf *out);
    bool is_recipient; /* does not count as an idle command */
} verbs[] = {
    {.verb = {"RCPT", 4}, .run = smtp_do_rcpt, .is_recipient = true},
    {.verb = {"MAIL", 4}, .run = smtp_do_mail},
    {.verb = {"DATA", 4}, .run = smtp_do_data},
    {.verb = {"EHLO", 4}, .run = do_ehlo},
    {.verb = {"HELO", 4}, .run = do_helo},
    {.verb = {"QUIT", 4}, .run = do_quit},
    {.verb = {"RSET", 4}, .run = do_rset},
    {.verb = {"AUTH", 4}, .run = smtp_do_auth},
    {.verb = {"STARTTLS", 8}, .run = do_starttls},
    {.verb = {"NOOP", 4}, .run = do_noop},
    {.verb = {"VRFY", 4}, .run = do_vrfy},
    {.verb = {"HELP", 4}, .run = do_help},
    {.verb = {"EXPN", 4}, .run = do_refused},
    {.verb = {"BDAT", 4}, .run = do_refused},
    {.verb = {"TURN", 4}, .run = do_refused},
    {.verb = {"ETRN", 4}, .run = do_refused},
    {.verb = {"GET", 3}, .run = do_http},
    {.verb = {"PUT", 3}, .run = do_http},
    {.verb = {"POST", 4}, .run = do_http},
    {.verb = {"HEAD", 4}, .run = do_http},
    {.verb = {"OPTIONS", 7}, .run = do_http},
    {.verb = {"CONNECT", 7}, .run = do_http},
};

static void take_command(struct smtp *m, struct span line, struct buf *out)
{
    struct span args = line;
    struct span verb = span_cut(&args, ' ');
    for (size_t i = 0; i < sizeof verbs / sizeof verbs[0]; i++) {
        if (span_ieq(verb, verbs[i].verb)) {
            m->idle_commands += !verbs[i].is_recipient;
            verbs[i].run(m, span_trim(args), out);
            return;
        }
    }
    m->idle_commands++;
    COMPLAIN(m, out, "500 5.5.2 Command not recognised");
}

/* ---- Lines ---- */

static size_t line_max(const struct smtp *m, struct span line)
{
    bool auth = m->state != STATE_COMMAND || span_istarts(line, SPAN_LIT("AUTH "));
    return auth ? SMTP_AUTH_LINE_MAX : SMTP_LINE_MAX;
}

static void too_long(struct smtp *m, struct buf *out)
{
    if (m->state == STATE_COMMAND) {
        COMPLAIN(m, out, "500 5.5.2 Line too long");
        return;
    }
    m->state = STATE_COMMAND;
    smtp_forget_credentials(m);
    COMPLAIN(m, out, "500 5.5.6 Authentication exchange line is too long");
}

/* Takes the CR LF off. False when the line holds what no line may. */
static bool line_clean(const struct smtp *m, struct span *line)
{
    line->len--;
    bool has_cr = line->len > 0 && line->data[line->len - 1] == '\r';
    line->len -= has_cr;
    return (has_cr || m->conf->repair_line_endings) && span_find(*line, '\r') == line->len &&
           span_find(*line, '\0') == line->len;
}

static void take_line(struct smtp *m, struct span line, struct buf *out)
{
    m->counts.commands++;
    if (!line_clean(m, &line)) {
        m->state = STATE_COMMAND;
        smtp_forget_credentials(m);
        COMPLAIN(m, out, "500 5.5.2 A line must end in <CR><LF> and hold no bare CR, LF or NUL");
    } else if (m->state != STATE_COMMAND) {
        smtp_take_auth_line(m, line, out);
    } else {
        take_command(m, line, out);
        if (m->idle_commands > m->conf->max_idle_commands && m->asked == SMTP_EVENT_MORE) {
            smtp_reply_closing(m, out, "4.7.0", "Too many commands without a message",
                               "idle_commands");
        }
    }
}

/* False: the line is not complete yet. */
static bool advance_line(struct smtp *m, struct span *bytes, struct buf *out)
{
    size_t from = m->searched < bytes->len ? m->searched : bytes->len;
    size_t lf = from + span_find(span_make(bytes->data + from, bytes->len - from), '\n');
    bool complete = lf < bytes->len;
    size_t len = complete ? lf + 1 : lf;
    struct span line = span_make(bytes->data, len);
    if (m->overlong || len > line_max(m, line)) {
        m->overlong = !complete;
        m->searched = 0;
        *bytes = span_make(bytes->data + len, bytes->len - len);
        if (complete) {
            m->counts.commands++;
            too_long(m, out);
        }
        return complete;
    }
    m->searched = complete ? 0 : len;
    if (!complete) {
        return false;
    }
    *bytes = span_make(bytes->data + len, bytes->len - len);
    take_line(m, line, out);
    return true;
}

enum smtp_event smtp_advance(struct smtp *m, struct span *bytes, struct buf *out)
{
    bool more = true;
    while (more && m->asked == SMTP_EVENT_MORE) {
        more = m->state == STATE_DATA ? smtp_advance_data(m, bytes, out)
                                      : advance_line(m, bytes, out);
    }
    return m->asked;
}

/* ---- Answers ---- */

void smtp_answer(struct smtp *m, const struct smtp_reply *words, struct buf *out)
{
    enum smtp_event asked = m->asked;
    bool yes = words == NULL || words->code < 400;
    m->asked = SMTP_EVENT_MORE;
    /* The words of a yes stand before what the machine would say; those of MAIL, RCPT and DATA are
     * always its own. */
    bool own = asked == SMTP_EVENT_MAIL || asked == SMTP_EVENT_RCPT || asked == SMTP_EVENT_DATA;
    bool worded = words != NULL && (!yes || !own);
    if (worded && words->code != 421) {
        smtp_reply_words(m, out, words->code, words->enhanced, words->text);
    }
    switch (asked) {
    case SMTP_EVENT_MAIL:
        smtp_answer_mail(m, yes, out);
        m->mail_put_off = !yes && words->code < 500;
        break;
    case SMTP_EVENT_RCPT:
        smtp_answer_rcpt(m, yes, out);
        break;
    case SMTP_EVENT_DATA:
        if (yes) {
            smtp_begin_data(m, out);
        }
        break;
    case SMTP_EVENT_MESSAGE:
        smtp_answer_message(m, yes, worded, out);
        break;
    case SMTP_EVENT_AUTH:
        smtp_answer_auth(m, yes, worded, out);
        break;
    case SMTP_EVENT_MORE:
    case SMTP_EVENT_STARTTLS:
    case SMTP_EVENT_CLOSE:
        UNREACHABLE();
    }
    if (words != NULL && words->code == 421) {
        char text[SMTP_REPLY_TEXT_MAX];
        (void)snprintf(text, sizeof text, "%.*s", SPAN_FMT(words->text));
        smtp_reply_closing(m, out, words->enhanced, text, "refused");
    }
}

void smtp_tls_started(struct smtp *m)
{
    ASSERT(m->asked == SMTP_EVENT_STARTTLS);
    m->asked = SMTP_EVENT_MORE;
    m->tls = true;
    m->greeted = false;
    m->extended = false;
    m->authenticated = false;
    m->searched = 0;
    smtp_end_transaction(m);
    smtp_forget_credentials(m);
    mem_free(m->helo);
    m->helo = NULL;
}

void smtp_expire(struct smtp *m, struct buf *out)
{
    if (m->state == STATE_DATA && smtp_data_looks_ended(&m->data)) {
        smtp_data_spoil(&m->data, SMTP_DEFECT_LINE_END);
    }
    if (m->state == STATE_DATA && m->data.defect != SMTP_DEFECT_NONE) {
        smtp_reply_defect(m, out);
        smtp_close(m, "timeout");
        return;
    }
    smtp_reply_closing(m, out, "4.4.2", "Timeout, closing", "timeout");
}

/* ---- What the owner asks ---- */

const struct smtp_transaction *smtp_transaction(const struct smtp *m)
{
    return &m->transaction;
}

const struct smtp_credentials *smtp_credentials(const struct smtp *m)
{
    return &m->credentials;
}

void smtp_forget_message(struct smtp *m)
{
    ASSERT(m->asked == SMTP_EVENT_MESSAGE);
    smtp_data_release(&m->data);
    m->transaction.message = (struct span){0};
}

void smtp_forget_password(struct smtp *m)
{
    buf_release(&m->password);
    m->credentials.password = (struct span){0};
}

const struct smtp_counts *smtp_counts(const struct smtp *m)
{
    return &m->counts;
}

struct span smtp_helo(const struct smtp *m)
{
    return span_of(m->helo);
}

const char *smtp_with(const struct smtp *m)
{
    /* RFC 3848; RFC 6531 4.3 for the second row of each kind. HELO knows neither. */
    static const char *const names[2][2][2] = {
        {{"ESMTP", "ESMTPA"}, {"ESMTPS", "ESMTPSA"}},
        {{"UTF8SMTP", "UTF8SMTPA"}, {"UTF8SMTPS", "UTF8SMTPSA"}},
    };
    if (!m->extended && !m->tls && !m->authenticated) {
        return "SMTP";
    }
    return names[m->transaction.smtputf8][m->tls][m->authenticated];
}

bool smtp_in_data(const struct smtp *m)
{
    return m->state == STATE_DATA;
}

bool smtp_is_idle(const struct smtp *m)
{
    return m->asked == SMTP_EVENT_MORE && m->state == STATE_COMMAND && !m->in_transaction;
}

bool smtp_peer_waits(const struct smtp *m)
{
    return m->state == STATE_DATA && smtp_data_looks_ended(&m->data);
}

size_t smtp_held_bytes(const struct smtp *m)
{
    return m->data.body.cap;
}

const char *smtp_end(const struct smtp *m)
{
    return m->end;
}
