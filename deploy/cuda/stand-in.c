// A driver that shows two cards of 24 GiB and computes nothing: what a worker asks before it computes, for stand-in.sh. What
// is not here fails as in a library that was only linked with.
#include <stdio.h>

#define INVALID_DEVICE 101

static const unsigned long GIB = 1UL << 30;
static long current; // The context: a card's number, counted from 1.

int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return number < 2 ? 0 : INVALID_DEVICE; }
int cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "Stand-in %d", device); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = 0; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(long)(device + 1); return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxSetCurrent(void *context) { current = (long)context; return 0; }
int cuCtxGetCurrent(void **context) { *context = (void *)current; return 0; }
int cuCtxSynchronize(void) { return 0; }

int cuMemGetInfo_v2(unsigned long *free, unsigned long *total) {
  *total = 24 * GIB;
  *free = current == 1 ? 20 * GIB : 23 * GIB;
  return 0;
}
