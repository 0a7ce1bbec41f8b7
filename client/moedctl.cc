#include "client/command.h"

int main(int argc, char** argv) { return moed::client::RunMoedctl(argc, argv); }
