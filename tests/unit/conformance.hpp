// Names a requirement of a specification in the test that shows it. docs/vrrp-conformance.md is made from
// these lines by tests/conformance.py, which reads the sources: SECTION as in "RFC 9568, 6.4.2", LEVEL as in
// "MUST", TEXT in own words.
#pragma once

#define FABRIC_SHOWS(section, level, text) \
  static_assert(sizeof(section) > 1 && sizeof(level) > 1 && sizeof(text) > 1)
