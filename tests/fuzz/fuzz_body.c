/* Fuzzes queue/body: any bytes as a stored body, whole and as a piece, with and without keys; and
 * any bytes as a key file. */
#include "queue/body.h"

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char keys[] = "a:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n";

static void decode(struct body_codec *codec, struct span stored)
{
    char why[300];
    size_t bytes = 0;
    if (body_size(stored, &bytes) != 0) {
        return;
    }
    struct body_piece piece = {.id = SPAN_LIT("01JABC-0"), .body_bytes = bytes};
    size_t room = body_is_bare(stored) ? bytes : body_piece_bytes(&piece);
    char *out = mem_alloc(room);
    int status = body_decode(codec, &piece, stored, out);
    body_explain(status, stored, why, sizeof(why));
    /* What could be read can be stored and read again. */
    if (status == 0 && bytes == room && bytes <= BODY_SMALL_BYTES) {
        struct span again = {0};
        char *second = mem_alloc(room);
        ASSERT(body_encode(codec, &piece, span_make(out, room), (struct span){0}, &again) == 0);
        ASSERT(body_decode(codec, &piece, again, second) == 0);
        ASSERT(memcmp(out, second, room) == 0);
        mem_free(second);
    }
    mem_free(out);
    piece.index = 3;
    out = mem_alloc(room + BODY_PIECE_BYTES);
    (void)body_decode(codec, &piece, stored, out); /* must only not crash */
    mem_free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct keyring *ring;
    static struct body_codec *sealing;
    static struct body_codec *plain;
    struct span input = span_make((const char *)data, size);
    if (ring == NULL) {
        ASSERT(keyring_parse(span_of(keys), &ring, NULL) == 0);
        sealing = body_codec_new(true, ring);
        plain = body_codec_new(true, NULL);
    }
    decode(sealing, input);
    decode(plain, input);
    struct keyring *parsed = NULL;
    if (keyring_parse(input, &parsed, NULL) == 0) {
        struct span id = {0};
        ASSERT(keyring_first(parsed, &id) == keyring_find(parsed, id));
        keyring_free(&parsed);
    }
    return 0;
}
